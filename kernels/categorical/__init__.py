"""Draws from categorical distributions by the inverse of the cumulative distribution: one uniform number a row."""

from __future__ import annotations

import torch

from kernels.dispatch import Op, check
from kernels.loop import Call, Each

_SAMPLE = Op("categorical_sample", "kernels.categorical", backends=("reference", "torch", "cpu"))


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
