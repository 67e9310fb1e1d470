"""A loop of compiled calls over T steps: what a captured CUDA graph is on a GPU, on a CPU.

Acting for T steps is the same few compiled calls T times over, each on the next row of the same tensors. Made one by
one from Python they cost more in overhead than in work as long as there are few copies; this makes all in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from lifelong.kernels.dispatch import Op

_LOOP = Op("loop", "lifelong.kernels.loop", backends=("cpu",))


class Each(NamedTuple):
    """An argument whose row t is used at step t; the rows are contiguous."""

    rows: torch.Tensor


class Call(NamedTuple):
    """A C function `name(const i64 *sizes, void *const *pointers)` and its arguments: tensors, rows, NULL."""

    functions: Mapping[torch.dtype, Callable[..., Any]]
    sizes: tuple[int, ...]
    arguments: tuple[torch.Tensor | Each | None, ...]


def loop(steps: int, calls: Sequence[Call], dtype: torch.dtype) -> None:
    """Make the `calls` in turn, `steps` times. Results are those of making them one by one. On the CPU only."""
    _LOOP.module("cpu", torch.empty(0, dtype=dtype)).loop(steps, calls, dtype)
