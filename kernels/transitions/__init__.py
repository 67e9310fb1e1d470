"""Steps of environments, from functions of batched tensors.

A *transition* is a function of tensors that have a row for each of B copies: from a state, an action, parameters and
random numbers it makes the next state, observation, reward and flags. `trace` follows it once, operation by operation,
`source` writes what it does to one copy in C, and `Transition` holds what became of it.

The C function, callable from other C code by its address (`Transition.address`), makes one step of B copies:

    void transition(const int64_t *sizes, void *const *pointers)

    sizes     B, then the number of threads it may use (blocks of 128 copies are dealt out to them)
    pointers  one a slot of `Transition.inputs`, in that order, then one a slot of `Transition.outputs`

A `Slot` says name, type and shape of one copy. A tensor is contiguous, [B, *shape]; or just `shape`, the same for all
copies, where `copies` is False. bool is a byte of 0 or 1. An output that nobody reads may be NULL. `state.*`, `age` and
`return` are inputs and, after the step and its reset, outputs, which may lie in the same memory; no other output may
lie where an input does. The random numbers of T steps are drawn ahead by `Transition.draw`; row t of each is what
step t reads. The function keeps nothing between calls, and any number of them may run at once.

Arithmetic is that of torch on this machine, bit for bit: rounding once where its kernels do, sin and exp by the library
that it calls. Whoever makes a `Transition` gives a check of whether the result is what the function does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lifelong.kernels import build
from lifelong.kernels.compiler.trace import Branching, Untraceable
from lifelong.kernels.transitions.functions import address, team
from lifelong.kernels.transitions.source import Writer
from lifelong.kernels.transitions.trace import Trace, trace
from lifelong.kernels.transitions.tracer import Draw, Slot

__all__ = ["Branching", "Draw", "Slot", "Transition", "Untraceable", "trace"]

#: without contracting what torch does not contract
FLAGS = (*build.FLAGS, "-ffp-contract=off")
#: a longer program (characters) is compiled with less care, which takes a third of the time
LONG = 200_000


class Transition:
    """A step in C.

    Args:
        name: what its file is called.
        traced: what it does.
        check: sees this when it was compiled just now; what it raises keeps the object from being kept.

    Raises:
        Untraceable: it does too much for a copy.
        BuildError: it cannot be compiled; or what `check` raises.
    """

    def __init__(self, name: str, traced: Trace, check: Callable[[Transition], None] = lambda made: None) -> None:
        self.draws: list[Draw] = traced.draws
        outputs = [Slot(key, value.dtype, value.shape[1:]) for key, value in traced.outputs.items()]
        inputs = [*traced.inputs.values(), *[draw.slot for draw in self.draws]]
        writer = Writer(traced, inputs, outputs)
        self.inputs, self.outputs, self._called = writer.inputs, outputs, writer.functions
        self._bulk = _bulk(self.draws)
        self.source = f"/* torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()} */\n{writer.text()}"

        flags = (*FLAGS, "-O1") if len(self.source) > LONG else FLAGS

        def checked(library: ctypes.CDLL) -> None:
            self._bind(library)
            check(self)

        try:
            self._bind(build.generated(f"step-{name}", self.source, torch.float32, checked, flags))
        except OSError as error:
            raise build.BuildError(f"{type(error).__name__}: {error}") from error

    def _bind(self, library: ctypes.CDLL) -> None:
        self._library = library
        if self._called:
            bind = build.entry_point(library, "transition_bind", "ipp", torch.float32)
            for place, function in enumerate(self._called):
                bind(place, *address(function))
            build.entry_point(library, "transition_team", "p", torch.float32)(team())
        self.function = build.entry_point(library, "transition", "pp", torch.float32)
        #: for `kernels.loop`, whatever its other calls compute in
        self.functions = build.Functions("", "transition", "pp")
        self.functions.update({torch.float32: self.function, torch.float64: self.function})
        #: of the C function
        self.address = self.functions.address(torch.float32)

    def draw(self, steps: int, copies: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of so many steps [T, B, ...], by the slots' names, in the order of the function's own."""
        if not self.draws:
            return {}
        if self._bulk is None:
            return self._one_by_one(steps, copies, generator)
        sizes = [draw.slot.size * copies for draw in self.draws]
        numbers = torch.empty(steps, sum(sizes), dtype=self.draws[0].slot.dtype)
        self._bulk(numbers, generator)
        parts = numbers.split(sizes, 1) if len(sizes) > 1 else (numbers,)
        return {
            draw.slot.name: part.view(steps, copies, *draw.slot.shape)
            for draw, part in zip(self.draws, parts, strict=True)
        }

    def _one_by_one(self, steps: int, copies: int, generator: torch.Generator) -> dict[str, Tensor]:
        found = {d.slot.name: torch.empty(steps, copies, *d.slot.shape, dtype=d.slot.dtype) for d in self.draws}
        for t in range(steps):
            for draw in self.draws:
                row = found[draw.slot.name][t]
                if draw.fills:
                    draw.function(row, *draw.args, generator=generator)
                else:
                    row.copy_(draw.function(*draw.args, list(row.shape), generator=generator, **draw.kwargs))
        return found


def _bulk(draws: list[Draw]) -> Callable[[Tensor, torch.Generator], Any] | None:
    """What draws the numbers of any number of steps at once; None if they are of several kinds, or normal."""
    kinds = {(draw.function, draw.args, tuple(draw.kwargs.items()), draw.slot.dtype) for draw in draws}
    if len(kinds) != 1:
        return None
    function, args, _, dtype = kinds.pop()
    name = function._schema.name
    if name == "aten::uniform_" and dtype == torch.float32 and not args:
        return lambda numbers, generator: numbers.uniform_(generator=generator)
    if name == "aten::randint" and dtype == torch.int64:
        low, high = (0, args[0]) if len(args) == 1 else args
        return lambda numbers, generator: numbers.random_(low, high, generator=generator)
    return None
