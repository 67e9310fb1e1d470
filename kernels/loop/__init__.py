"""A loop of compiled calls over T steps: what a captured CUDA graph is on a GPU, on a CPU.

Acting for T steps is the same few compiled calls T times over, each on the next row of the same tensors. Made one by
one from Python they cost more in overhead than in work as long as there are few copies; this makes all in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lifelong.kernels.build import Functions
from lifelong.kernels.dispatch import Op

_LOOP = Op("loop", "lifelong.kernels.loop", backends=("cpu",))


class Each(NamedTuple):
    """An argument whose row t is used at step t; the rows are contiguous, or the call knows how they lie."""

    rows: torch.Tensor


class Call(NamedTuple):
    """A C function `name(const i64 *sizes, void *const *pointers)` and what it gets: tensors, or a row of each step;
    addresses of anything else; None is NULL."""

    functions: Functions
    sizes: tuple[int, ...]
    arguments: tuple[torch.Tensor | Each | int | None, ...]


class Prepared:
    """Calls that can be made again and again, on the tensors that they were given.

    Args:
        calls: in turn, at every step.
        dtype: of the C functions.
    """

    def __init__(self, calls: Sequence[Call], dtype: torch.dtype) -> None:
        self._calls = calls  # keeps their tensors
        self._run = _LOOP.module("cpu", torch.empty(0, dtype=dtype)).prepare(calls, dtype)

    def run(self, steps: int = 1, first: int = 0) -> None:
        """Make the calls in turn, for the steps from `first` on. On the CPU only."""
        self._run(first, steps)


def loop(steps: int, calls: Sequence[Call], dtype: torch.dtype) -> None:
    """Make the `calls` in turn, `steps` times. Results are those of making them one by one. On the CPU only."""
    Prepared(calls, dtype).run(steps)
