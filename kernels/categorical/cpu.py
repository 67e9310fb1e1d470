"""Compiled (`cpu.c`)."""

from __future__ import annotations

import torch

from kernels import build

_SAMPLE = build.function("kernels.categorical", "sample", "iiippp")

SAMPLE_CALL = build.function("kernels.categorical", "sample_call", "pp")


def sample(logits_MA: torch.Tensor, uniform_M: torch.Tensor) -> torch.Tensor:
    """See `kernels.categorical.categorical_sample`."""
    logits = logits_MA if logits_MA.stride(1) == 1 else logits_MA.contiguous()
    uniform = uniform_M.contiguous()
    M, A = logits.shape
    action_M = torch.empty(M, dtype=torch.int64)
    _SAMPLE[logits.dtype](M, A, logits.stride(0), logits.data_ptr(), uniform.data_ptr(), action_M.data_ptr())
    return action_M
