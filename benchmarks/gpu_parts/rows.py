"""What `benchmarks/gpu.py` measures with: sizes, rows of the result, errors and times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """How large everything is; the defaults are for a GPU, `TINY` for tests on a CPU."""

    kernels: tuple[tuple[int, int, int, int], ...] = ((1, 3, 5, 4), (7, 33, 65, 20), (32, 256, 128, 64))  # T, B, N, D
    exactness: tuple[int, int, int, int, int] = (3, 8, 64, 48, 20)  # chunks, T, B, N, D
    env_copies: int = 1024
    capture: tuple[int, int, int, int] = (6, 16, 256, 64)  # chunks, T, B, N
    train_copies: int = 1024
    train_steps: int = 400_000
    scan: tuple[int, int, int] = (4096, 64, 256)  # B, T, N
    step: tuple[int, int, int] = (4096, 32, 256)  # B, T, N of rtrl against bptt
    env_alone: tuple[int, ...] = (4096, 2**20)  # B
    end_to_end: tuple[int, int, int] = (4096, 32, 128)  # B, T, N
    per_step: tuple[int, int, int, int] = (4096, 32, 256, 64)  # B, T, N, D
    repeats: int = 10
    seconds: float = 500.0  # nothing new is started after so long


TINY = Sizes(
    kernels=((3, 2, 5, 4),),
    exactness=(3, 4, 5, 6, 3),
    env_copies=4,
    capture=(4, 4, 8, 6),
    train_copies=8,
    train_steps=512,
    scan=(4, 8, 16),
    step=(4, 4, 8),
    env_alone=(4, 8),
    end_to_end=(4, 4, 8),
    per_step=(3, 4, 8, 5),
    repeats=2,
)


@dataclass
class Row:
    """One line of the result. `status` is PASS or FAIL for a check, `value` for a measurement, SKIP with a reason."""

    name: str
    status: str
    value: float | None = None
    unit: str = ""
    note: str = ""


class Skip(Exception):
    """A part that cannot run here, with the reason."""


# ---- small tools -----------------------------------------------------------------------------------------------------


def relative_rms(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected; infinite if anything is not finite."""
    if got.shape != expected.shape:
        raise AssertionError(f"shape {tuple(got.shape)} is not {tuple(expected.shape)}")
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    if not bool(torch.isfinite(got).all()):
        return math.inf
    return (got - expected).norm().item() / (expected.norm().item() or 1.0)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 3) -> float:
    """Median seconds of `run` after a warm-up."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            synchronize(device)
            times.append(start.elapsed_time(end) / 1e3)
        else:
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    return median(times)
