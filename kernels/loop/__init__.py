"""A loop of compiled calls over T steps: what a captured CUDA graph is on a GPU, on a CPU.

Acting for T steps is the same few compiled calls T times over, each on the next row of the same tensors. Made one by
one from Python they cost more in overhead than in work as long as there are few copies; this makes all in one call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from lifelong.kernels.build import Functions
from lifelong.kernels.dispatch import Op

_LOOP = Op("loop", "lifelong.kernels.loop", backends=("cpu",))


class Each(NamedTuple):
    """An argument whose row t is used at step t; the rows are contiguous, or the call knows how they lie."""

    rows: torch.Tensor


class Held(NamedTuple):
    """An argument that is an array of ctypes, and what its addresses need to be there."""

    array: ctypes.Array[Any]
    kept: object = None


class Call(NamedTuple):
    """A C function `name(const i64 *sizes, void *const *pointers)` and what it gets: tensors, or a row of each step;
    addresses of anything else; None is NULL."""

    functions: Functions
    sizes: tuple[int, ...]
    arguments: tuple[torch.Tensor | Each | int | None, ...]


class Direct(NamedTuple):
    """Any C function of `kernels.build` and its arguments in order.

    For a pointer a tensor, the row of each step or None; for an integer an int; for a double a number, or a float64
    tensor that is read when the call is made.
    """

    entry: Callable[..., Any]
    arguments: tuple[torch.Tensor | Each | Held | int | float | None, ...]


class Calls(NamedTuple):
    """What is computed at every step, what has to be made of the weights before, and how to learn from it.

    `backward(rounds, slopes, grads)` gives the calls of the backward pass over all rows of a round (see `by_round`):
    from the gradients `slopes` of what was computed, which are written over, those of the parameters are added to
    `grads`, by name. None: there is nothing to learn.
    """

    pack: list[Call | Direct]
    step: list[Call | Direct]
    backward: Callable[[int, torch.Tensor, Mapping[str, torch.Tensor]], list[Call | Direct]] | None = None


def by_round(rows: torch.Tensor, rounds: int, steps: int) -> Each:
    """Rows [rounds * T or more, B, ...] as [T * B, ...] of each round."""
    return Each(rows[: rounds * steps].unflatten(0, (rounds, steps)).flatten(1, 2))


def fixed(call: Call | Direct) -> Call | Direct:
    """The call on the first row of everything, whatever the step."""
    arguments = tuple(each.rows[0] if isinstance(each, Each) else each for each in call.arguments)
    return call._replace(arguments=arguments)  # type: ignore[arg-type]


class Prepared:
    """Calls that can be made again and again, on the tensors that they were given.

    Args:
        calls: in turn, at every step.
        dtype: of the C functions.
    """

    def __init__(self, calls: Sequence[Call | Direct], dtype: torch.dtype) -> None:
        self._calls = calls  # keeps their tensors
        self._run = _LOOP.module("cpu", torch.empty(0, dtype=dtype)).prepare(calls, dtype)

    def run(self, steps: int = 1, first: int = 0) -> None:
        """Make the calls in turn, for the steps from `first` on. On the CPU only."""
        self._run(first, steps)


class Segment(NamedTuple):
    """Calls of one round of `program`, in turn: for the next `steps` rows; or, with `where` (mask, veto), two bool
    [rounds * rows], for every row of the round that the mask names and the veto does not."""

    calls: Sequence[Call | Direct]
    steps: int = 1
    where: tuple[torch.Tensor, torch.Tensor] | None = None


class Watched(NamedTuple):
    """Numbers [rounds, n] that have to be finite after a segment."""

    segment: int
    numbers: torch.Tensor


class Program:
    """Segments that are gone through again and again, with nothing between them. On the CPU only.

    Args:
        rounds: how many times in one run.
        segments: of a round.
        watched: numbers that have to be finite.
        dtype: of the C functions.
    """

    def __init__(self, rounds: int, segments: Sequence[Segment], watched: Watched | None, dtype: torch.dtype) -> None:
        sample = torch.empty(0, dtype=dtype)
        self._run = _LOOP.module("cpu", sample).program(rounds, segments, watched, dtype)

    def run(self) -> int:
        """Go through them.

        Returns:
            How many rounds were gone through: fewer if numbers that are watched were not finite, and then the rest of
            that round was left out.
        """
        done: int = self._run()
        return done


def loop(steps: int, calls: Sequence[Call | Direct], dtype: torch.dtype) -> None:
    """Make the `calls` in turn, `steps` times. Results are those of making them one by one. On the CPU only."""
    Prepared(calls, dtype).run(steps)
