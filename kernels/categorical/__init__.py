"""Categorical distributions: draws by the inverse of the cumulative distribution, log-probabilities and entropies."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.dispatch import Op, check
from lifelong.kernels.loop import Call, Each

_SAMPLE = Op("categorical_sample", "lifelong.kernels.categorical", backends=("reference", "torch", "cpu"))
_LOG_PROB = Op("categorical_log_prob", "lifelong.kernels.categorical", backends=("reference", "torch", "cpu"))


def categorical_sample(logits_MA: torch.Tensor, uniform_M: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """The first action whose cumulative probability exceeds uniform * total, int64 [M].

    logits_MA: unnormalised log-probabilities, finite; uniform_M: in [0, 1). Equal uniform numbers give equal actions,
    up to rounding between backends. Raises ValueError for wrong shapes, dtypes or a backend that cannot run.
    """
    if logits_MA.ndim != 2:
        raise ValueError(f"categorical_sample: logits must have shape (M, A), got {tuple(logits_MA.shape)}")
    check("categorical_sample", "uniform", uniform_M, logits_MA.shape[:1], logits_MA)
    return _SAMPLE.module(backend, logits_MA).sample(logits_MA, uniform_M)


def categorical_call(logits_TMA: torch.Tensor, uniform_TM: torch.Tensor, action_TM: torch.Tensor) -> Call:
    """`categorical_sample` of row t into row t of `action_TM` (int64), for `kernels.loop`."""
    _, M, A = logits_TMA.shape
    functions = _SAMPLE.module("cpu", logits_TMA).SAMPLE_CALL
    return Call(functions, (M, A, logits_TMA.stride(1)), (Each(logits_TMA), Each(uniform_TM), Each(action_TM)))


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, impl: Any, logits: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_prob, entropy, kept = impl.log_prob(logits, action)
        ctx.impl = impl
        ctx.save_for_backward(logits, action, entropy, kept)
        return log_prob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_prob: torch.Tensor, d_entropy: torch.Tensor) -> Any:
        return None, ctx.impl.log_prob_backward(*ctx.saved_tensors, d_log_prob, d_entropy), None


def categorical_log_prob(
    logits: torch.Tensor, action: torch.Tensor, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability of the action, entropy in nats), [...] each, of logits [..., A] and actions int64 [...].

    Gradients to the logits from both. An action without probability adds nothing to the entropy. Raises ValueError for
    wrong shapes, dtypes or a backend that cannot run, and IndexError for an action outside 0 .. A - 1 (on CUDA a
    device-side assertion, as torch's own `gather` has).
    """
    op, shape = "categorical_log_prob", logits.shape[:-1]
    if action.shape != shape or action.dtype != torch.int64 or action.device != logits.device:
        raise ValueError(
            f"{op}: action must be int64 {tuple(shape)} on {logits.device}, got {action.dtype} {tuple(action.shape)} "
            f"on {action.device}"
        )
    impl = _LOG_PROB.module(backend, logits)
    if hasattr(impl, "log_prob_and_entropy"):  # differentiable as it stands
        return impl.log_prob_and_entropy(logits, action)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and logits.requires_grad:
        return _LogProb.apply(impl, logits, action)  # type: ignore[no-untyped-call,no-any-return]
    log_prob, entropy, _ = impl.log_prob(logits, action)
    return log_prob, entropy
