"""Compiled (`cpu.c`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lifelong.kernels import build
from lifelong.kernels.loop import Call, Direct, Each, Held, Segment, Watched

_LOOP = build.function("lifelong.kernels.loop", "loop", "iii" + "p" * 7)
_PROGRAM = build.function("lifelong.kernels.loop", "program", "iiiii" + "p" * 12)
_SIZES, _WORDS, _DOUBLES = 16, 32, 8  # as in cpu.c

Argument = torch.Tensor | Each | int | None


class _Arrays:
    """Calls as cpu.c reads them; keeps alive what they point to."""

    def __init__(self, calls: Sequence[Call | Direct], dtype: torch.dtype) -> None:
        functions, counts, direct, sizes, strides = [], [], [], [], []
        words: list[int | None] = []
        doubles: list[int | None] = []
        self.kept: list[object] = [calls]
        for call in calls:
            arguments, numbers = self._arguments(call)
            own = call.sizes if isinstance(call, Call) else ()
            assert len(own) <= _SIZES
            assert isinstance(call, Call) or len(arguments) <= _WORDS
            assert len(numbers) <= _DOUBLES
            functions.append(call.functions.address(dtype) if isinstance(call, Call) else build.address(call.entry))
            sizes += [*own, *[0] * (_SIZES - len(own))]
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
        self.counts = counts
        arrays: tuple[ctypes.Array[Any], ...] = (
            (ctypes.c_int64 * len(counts))(*counts),
            (ctypes.c_int64 * len(direct))(*direct),
            (ctypes.c_void_p * len(functions))(*functions),
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_void_p * len(words))(*words),
            (ctypes.c_int64 * len(strides))(*strides),
            (ctypes.c_void_p * len(doubles))(*doubles),
        )
        self.kept.append(arrays)
        self.where = [ctypes.addressof(array) for array in arrays]

    def _arguments(self, call: Call | Direct) -> tuple[list[Argument], list[int]]:
        """The words of a call, and where its doubles lie."""
        if isinstance(call, Call):
            return list(call.arguments), []
        words: list[Argument] = []
        numbers = []
        for kind, argument in zip(call.entry.argtypes, call.arguments, strict=True):  # type: ignore[attr-defined]
            if kind is ctypes.c_double:
                number = argument if isinstance(argument, torch.Tensor) else torch.tensor(argument, dtype=torch.float64)
                assert number.dtype == torch.float64
                self.kept.append(number)
                numbers.append(number.data_ptr())
            elif isinstance(argument, Held):
                self.kept.append(argument.array)
                words.append(ctypes.addressof(argument.array))
            else:
                assert not isinstance(argument, float)
                words.append(argument)
        return words, numbers


def prepare(calls: Sequence[Call | Direct], dtype: torch.dtype) -> Callable[[int, int], None]:
    """A function of the first step and the number of steps (see `kernels.loop.Prepared`)."""
    arrays, entry, count = _Arrays(calls, dtype), _LOOP[dtype], len(calls)

    def run(first: int, steps: int) -> None:
        entry(first, steps, count, *arrays.where)

    return run


def program(rounds: int, segments: Sequence[Segment], watched: Watched | None, dtype: torch.dtype) -> Callable[[], int]:
    """See `kernels.loop.Program`."""
    arrays = _Arrays([call for segment in segments for call in segment.calls], dtype)
    parts, call, word = [], 0, 0
    masks = [segment.where for segment in segments if segment.where is not None]
    assert len(masks) <= 1
    for segment in segments:
        many = len(segment.calls)
        parts += [call, many, word, 0 if segment.where is not None else segment.steps]
        word += sum(arrays.counts[call : call + many])
        call += many
    rows = masks[0][0].numel() // rounds if masks else 0
    mask, veto = (each.data_ptr() for each in masks[0]) if masks else (None, None)
    done, layout = ctypes.c_int64(), (ctypes.c_int64 * len(parts))(*parts)
    guard, numbers = (-1, None) if watched is None else watched
    entry, count = _PROGRAM[dtype], 0 if numbers is None else numbers.numel() // rounds
    arguments = (
        *(rounds, len(segments), guard, count, rows, ctypes.addressof(layout)),
        *arrays.where,
        *(mask, veto, None if numbers is None else numbers.data_ptr(), ctypes.addressof(done)),
    )
    held = arrays, layout, masks, numbers  # what these point to

    def run() -> int:
        assert held
        entry(*arguments)
        return done.value

    return run
