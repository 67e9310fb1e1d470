"""Compiled (`cpu.c`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from lifelong.kernels import build
from lifelong.kernels.loop import Call, Each

_LOOP = build.function("lifelong.kernels.loop", "loop", "ii" + "p" * 5)
_SIZES, _POINTERS = 8, 64  # as in cpu.c


def loop(steps: int, calls: Sequence[Call], dtype: torch.dtype) -> None:
    """See `kernels.loop.loop`."""
    functions, counts, sizes, pointers, strides = [], [], [], [], []
    for call in calls:
        assert len(call.sizes) <= _SIZES
        assert len(call.arguments) <= _POINTERS
        functions.append(ctypes.cast(call.functions[dtype], ctypes.c_void_p).value)  # type: ignore[arg-type]
        counts.append(len(call.arguments))
        sizes += [*call.sizes, *[0] * (_SIZES - len(call.sizes))]
        for argument in call.arguments:
            tensor = argument.rows if isinstance(argument, Each) else argument
            pointers.append(None if tensor is None else tensor.data_ptr())
            strides.append(_stride(argument.rows) if isinstance(argument, Each) else 0)
    integers, addresses = ctypes.c_int64, ctypes.c_void_p
    arrays: list[ctypes.Array[Any]] = [
        (integers * len(counts))(*counts),
        (addresses * len(functions))(*functions),
        (integers * len(sizes))(*sizes),
        (addresses * len(pointers))(*pointers),
        (integers * len(strides))(*strides),
    ]
    _LOOP[dtype](steps, len(calls), *[ctypes.addressof(array) for array in arrays])


def _stride(rows: torch.Tensor) -> int:
    """Bytes from a row to the next."""
    return rows.stride(0) * rows.element_size()
