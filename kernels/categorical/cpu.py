"""Compiled (`cpu.c`)."""

from __future__ import annotations

import ctypes

import torch

from lifelong.kernels import build
from lifelong.kernels.loop import Direct, Each, Held

_SAMPLE = build.function("lifelong.kernels.categorical", "sample", "iiippp")

_LOG_PROB = build.function("lifelong.kernels.categorical", "log_prob", "iiii" + "p" * 6)
_LOG_PROB_BACKWARD = build.function("lifelong.kernels.categorical", "log_prob_backward", "iiii" + "p" * 7)

SAMPLE_CALL = build.function("lifelong.kernels.categorical", "sample_call", "pp")


def sample(logits_MA: torch.Tensor, uniform_M: torch.Tensor) -> torch.Tensor:
    """See `kernels.categorical.categorical_sample`."""
    logits = logits_MA if logits_MA.stride(1) == 1 else logits_MA.contiguous()
    uniform = uniform_M.contiguous()
    M, A = logits.shape
    action_M = torch.empty(M, dtype=torch.int64)
    _SAMPLE[logits.dtype](M, A, logits.stride(0), logits.data_ptr(), uniform.data_ptr(), action_M.data_ptr())
    return action_M


def log_prob(logits: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probability, entropy, logarithm of the sum of exponentials over the largest), [...] each."""
    rows, stride = _rows(logits)
    shape, dtype, actions = logits.shape[:-1], logits.dtype, action.contiguous()
    outputs = tuple(torch.empty(shape, dtype=dtype) for _ in range(3))
    invalid = ctypes.c_int64()
    _LOG_PROB[dtype](
        actions.numel(), logits.shape[-1], stride, torch.get_num_threads(), rows.data_ptr(), actions.data_ptr(),
        *[output.data_ptr() for output in outputs], ctypes.addressof(invalid),
    )  # fmt: skip
    if invalid.value:
        raise IndexError(f"categorical_log_prob: {invalid.value} action(s) outside 0 .. {logits.shape[-1] - 1}")
    log_prob, entropy, size = outputs
    return log_prob, entropy, size


def log_prob_backward(
    logits: torch.Tensor,
    action: torch.Tensor,
    entropy: torch.Tensor,
    size: torch.Tensor,
    d_log_prob: torch.Tensor,
    d_entropy: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the logits."""
    rows, stride = _rows(logits)
    tensors = [x.contiguous() for x in (action, entropy, size, d_log_prob, d_entropy)]
    d = torch.empty(logits.shape, dtype=logits.dtype)
    _LOG_PROB_BACKWARD[d.dtype](
        action.numel(), logits.shape[-1], stride, torch.get_num_threads(), rows.data_ptr(),
        *[x.data_ptr() for x in tensors], d.data_ptr(),
    )  # fmt: skip
    return d


def _rows(logits: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The logits with their rows evenly apart, and how far: a slice of a read-out needs no copy."""
    A, apart = logits.shape[-1], logits.stride(-2) if logits.ndim > 1 else logits.shape[-1]
    even = logits.stride(-1) == 1 and all(
        logits.stride(i) == logits.stride(i + 1) * logits.shape[i + 1] for i in range(logits.ndim - 2)
    )
    return (logits, apart) if even else (logits.contiguous(), A)


def log_prob_call(
    rows: int,
    actions: int,
    logits: Each | torch.Tensor,
    action: Each | torch.Tensor,
    log_prob: Each | torch.Tensor,
    entropy: torch.Tensor,
    size: torch.Tensor,
) -> Direct:
    """`log_prob` as a call for `kernels.loop`, of logits in one piece and actions that exist."""
    invalid = Held((ctypes.c_int64 * 1)())
    sizes = rows, actions, actions, torch.get_num_threads()
    return Direct(_LOG_PROB[entropy.dtype], (*sizes, logits, action, log_prob, entropy, size, invalid))


def log_prob_backward_call(
    rows: int, actions: int, logits: Each | torch.Tensor, action: Each | torch.Tensor, *tensors: torch.Tensor
) -> Direct:
    """`log_prob_backward` as a call for `kernels.loop`; the tensors in its order, then where the gradient goes."""
    sizes = rows, actions, actions, torch.get_num_threads()
    return Direct(_LOG_PROB_BACKWARD[tensors[0].dtype], (*sizes, logits, action, *tensors))
