"""The loss of PPO and what is logged of it, with the gradients of all three of its terms in the same pass.

    L = - mean(min(r A, clip(r, 1 - eps, 1 + eps) A)) + value_weight / 2 mean((V - R)^2) - entropy_weight mean(H)

with r = pi(a|x) / mu(a|x). Source: Schulman et al., "Proximal Policy Optimization Algorithms" (2017), equations 7, 9.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.dispatch import Op, check

_LOSS = Op("ppo_loss", "lifelong.kernels.ppo_loss", backends=("reference", "torch", "cpu"))


class Statistics(NamedTuple):
    """Scalars for the log, without gradient. Means are over the steps that count, as in the loss."""

    policy: torch.Tensor  # the first term
    value: torch.Tensor  # half the mean squared error of the value
    entropy: torch.Tensor
    explained_variance: torch.Tensor  # 1 - Var(target - value) / Var(target), over all steps
    approximate_kl: torch.Tensor  # mean(r - 1 - log r) (Schulman 2020, "Approximating KL divergence")
    clip_fraction: torch.Tensor
    max_ratio_error: torch.Tensor  # max |r - 1|, over all steps


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, impl: Any, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, statistics, *slopes = impl.loss(*arguments)
        ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(statistics)
        return loss, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor, _: torch.Tensor) -> Any:
        return None, *[slope * d_loss for slope in ctx.saved_tensors], *[None] * 8


def ppo_loss(
    log_prob_TB: torch.Tensor,
    entropy_TB: torch.Tensor,
    value_TB: torch.Tensor,
    old_log_prob_TB: torch.Tensor,
    advantage_TB: torch.Tensor,
    target_TB: torch.Tensor,
    weight_TB: torch.Tensor,
    total: torch.Tensor,
    clip: float,
    value_weight: float,
    entropy_weight: float,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, Statistics]:
    """(loss, statistics) of the module docstring.

    log_prob, entropy and value are the current policy's and have gradients; old_log_prob is log mu(a|x); target is R;
    weight_TB is 0 for steps that do not count, and means divide by `total`, a scalar tensor. Raises ValueError for
    wrong shapes, dtypes or a backend that cannot run.
    """
    tensors = (log_prob_TB, entropy_TB, value_TB, old_log_prob_TB, advantage_TB, target_TB, weight_TB)
    names = ("log_prob", "entropy", "value", "old_log_prob", "advantage", "target", "weight")
    for name, tensor in zip(names, tensors, strict=True):
        check("ppo_loss", name, tensor, log_prob_TB.shape, log_prob_TB)
    impl = _LOSS.module(backend, log_prob_TB)
    if hasattr(impl, "differentiable_loss"):
        loss, statistics = impl.differentiable_loss(*tensors, total, clip, value_weight, entropy_weight)
    else:
        loss, statistics = _Loss.apply(impl, *tensors, total, clip, value_weight, entropy_weight)  # type: ignore[no-untyped-call]
    return loss, Statistics(*statistics.unbind())
