"""Compiled (`cpu.c`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch

from lifelong.kernels import build
from lifelong.kernels.loop import Call, Direct, Each

_LOOP = build.function("lifelong.kernels.loop", "loop", "iii" + "p" * 7)
_SIZES, _WORDS, _DOUBLES = 16, 32, 8  # as in cpu.c


def prepare(calls: Sequence[Call | Direct], dtype: torch.dtype) -> Callable[[int, int], None]:
    """A function of the first step and the number of steps (see `kernels.loop.Prepared`)."""
    functions, counts, direct, sizes, strides = [], [], [], [], []
    words: list[int | None] = []
    doubles: list[int | None] = []
    kept: list[object] = []
    for call in calls:
        numbers: list[int | None] = []
        if isinstance(call, Call):
            assert len(call.sizes) <= _SIZES
            functions.append(call.functions.address(dtype))
            sizes += [*call.sizes, *[0] * (_SIZES - len(call.sizes))]
            arguments = list(call.arguments)
        else:
            functions.append(build.address(call.entry))
            sizes += [0] * _SIZES
            arguments = []
            for kind, argument in zip(call.entry.argtypes, call.arguments, strict=True):  # type: ignore[attr-defined]
                if kind is not ctypes.c_double:
                    arguments.append(argument)
                    continue
                number = argument if isinstance(argument, torch.Tensor) else torch.tensor(argument, dtype=torch.float64)
                assert number.dtype == torch.float64
                kept.append(number)
                numbers.append(number.data_ptr())
        assert len(arguments) <= _WORDS
        assert len(numbers) <= _DOUBLES
        direct.append(int(isinstance(call, Direct)))
        counts.append(len(arguments))
        doubles += [*numbers, *[None] * (_DOUBLES - len(numbers))]
        for argument in arguments:
            if isinstance(argument, Each):
                words.append(argument.rows.data_ptr())
                strides.append(argument.rows.stride(0) * argument.rows.element_size())
            else:
                words.append(argument.data_ptr() if isinstance(argument, torch.Tensor) else argument)
                strides.append(0)
    arrays = (
        (ctypes.c_int64 * len(counts))(*counts),
        (ctypes.c_int64 * len(direct))(*direct),
        (ctypes.c_void_p * len(functions))(*functions),
        (ctypes.c_int64 * len(sizes))(*sizes),
        (ctypes.c_void_p * len(words))(*words),
        (ctypes.c_int64 * len(strides))(*strides),
        (ctypes.c_void_p * len(doubles))(*doubles),
    )
    entry, count, where = _LOOP[dtype], len(calls), [ctypes.addressof(array) for array in arrays]

    def run(first: int, steps: int, held: object = (arrays, kept)) -> None:
        entry(first, steps, count, *where)

    return run
