"""The whole history of a run as one autograd graph: what the RTRL carry of its trainer must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.cells.base import DiagonalCell
from lifelong.agent.gradients.rtrl import RTRL

#: of the memory of all copies [B, N] float64, a function of it
Event = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class History:
    """Writes down all that happens to the memory and the carry of an engine: chunks with the parameters that produced
    them, resets of copies and of units.

    Args:
        engine: of a diagonal cell, before its first chunk.
    """

    def __init__(self, engine: RTRL) -> None:
        assert isinstance(engine.cell, DiagonalCell)
        self.engine, self.cell, self.events = engine, engine.cell, list[Event]()
        self.last = 0  # which event is the last chunk
        self.chunks = self.resets = 0
        trace, reset, reset_units = engine.trace, engine.reset, engine.reset_units

        def traced(x: Tensor, state: Tensor, is_init: Tensor, index: Tensor | None = None, **options: Any) -> Any:
            self.chunks += 1
            self.last = len(self.events)
            now = [p.detach().double() for p in (self.cell.weight_input, self.cell.bias, self.cell.weight_recurrent)]
            self.events.append(self._chunk(x.double().clone(), is_init.clone(), index, now))
            return trace(x, state, is_init, index, **options)

        def reset_copies(mask_B: Tensor) -> None:
            kept = (~mask_B).double().unsqueeze(1)
            self.events.append(lambda c, *_: c * kept)
            reset(mask_B)

        def reset_some(units: Tensor, index: Tensor | None = None) -> None:
            self.resets += len(units)
            kept = torch.ones(engine.copies, self.cell.size, dtype=torch.float64)
            rows = torch.arange(engine.copies) if index is None else index
            kept[rows.unsqueeze(1), units] = 0.0
            self.events.append(lambda c, *_: c * kept)
            reset_units(units, index)

        engine.trace, engine.reset, engine.reset_units = traced, reset_copies, reset_some  # type: ignore[method-assign]

    def _chunk(self, x_TBD: Tensor, is_init_TB: Tensor, index: Tensor | None, now: list[Tensor]) -> Event:
        rows = torch.arange(self.engine.copies) if index is None else index

        def through(c_BN: Tensor, *changes: Tensor) -> Tensor:
            weight, bias, vectors = (p + change for p, change in zip(now, changes, strict=True))
            c = c_BN[rows]
            for x_BD, is_init_B in zip(x_TBD, is_init_TB, strict=True):
                drives = torch.nn.functional.linear(x_BD, weight, bias).split(self.cell.size, -1)
                c = self.cell.recurrence(drives, vectors.unbind(0), c * (~is_init_B).double().unsqueeze(1))
            return c_BN.index_copy(0, rows, c)

        return through

    def memory(self, truncated: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The memory [B, N] after all that happened, as a function of a change that all parameters have in common; or
        as one of that change in the last chunk, if it is to be truncated."""
        like = (self.cell.weight_input, self.cell.bias, self.cell.weight_recurrent)
        changes = tuple(torch.zeros_like(p, dtype=torch.float64, requires_grad=True) for p in like)
        c = torch.zeros(self.engine.copies, self.cell.size, dtype=torch.float64)
        for number, event in enumerate(self.events):
            c = event(c.detach() if truncated and number == self.last else c, *changes)
        return c, changes

    def carried(self, boundary_BN: Tensor) -> list[Tensor]:
        """The carry's product with dL/dc = `boundary_BN`: for input weights, biases and element-wise weights."""
        weight, small = self.cell.carry_gradient(self.engine.weight_BGND, self.engine.small_BMN, boundary_BN, None)
        gates = len(self.cell.GATES)
        return [weight.flatten(0, 1), small[:gates].flatten(), small[gates:]]
