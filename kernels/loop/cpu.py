"""Compiled (`cpu.c`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch

from lifelong.kernels import build
from lifelong.kernels.loop import Call, Each

_LOOP = build.function("lifelong.kernels.loop", "loop", "iii" + "p" * 5)
_SIZES, _POINTERS = 16, 64  # as in cpu.c


def prepare(calls: Sequence[Call], dtype: torch.dtype) -> Callable[[int, int], None]:
    """A function of the first step and the number of steps (see `kernels.loop.Prepared`)."""
    functions, counts, sizes, strides = [], [], [], []
    pointers: list[int | None] = []
    for call in calls:
        assert len(call.sizes) <= _SIZES
        assert len(call.arguments) <= _POINTERS
        functions.append(call.functions.address(dtype))
        counts.append(len(call.arguments))
        sizes += [*call.sizes, *[0] * (_SIZES - len(call.sizes))]
        for argument in call.arguments:
            if isinstance(argument, Each):
                pointers.append(argument.rows.data_ptr())
                strides.append(argument.rows.stride(0) * argument.rows.element_size())
            else:
                pointers.append(argument.data_ptr() if isinstance(argument, torch.Tensor) else argument)
                strides.append(0)
    integers, addresses, count = ctypes.c_int64, ctypes.c_void_p, len(calls)
    arrays = (
        (integers * len(counts))(*counts),
        (addresses * len(functions))(*functions),
        (integers * len(sizes))(*sizes),
        (addresses * len(pointers))(*pointers),
        (integers * len(strides))(*strides),
    )
    entry, where = _LOOP[dtype], [ctypes.addressof(array) for array in arrays]

    def run(first: int, steps: int, kept: object = arrays) -> None:
        entry(first, steps, count, *where)

    return run
