"""Different cells side by side: one policy with several kinds of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lifelong.agent.cells.composite import Composite, Spec, build
from lifelong.envs.options import Width


class Ensemble(Composite):
    """y = [f_1(x), f_2(x), ...], each f_k a cell that hears the same. No part hears another, so that each has the
    gradient that its engine gives it alone.

    Args:
        input_size: D.
        size: units of all cells together, shared out evenly among those that say nothing else.
        cells: the cells.
    """

    def __init__(
        self, input_size: int, *, size: Width = 128, cells: Sequence[Spec] = ("elstm", "min_gru", "rtu")
    ) -> None:
        if not cells or size < len(cells):
            raise ValueError(f"size is {size} for {len(cells)} cells; each needs at least one unit")
        sizes = [size // len(cells) + (k < size % len(cells)) for k in range(len(cells))]
        parts = [build(spec, input_size, size=n) for spec, n in zip(cells, sizes, strict=True)]
        units = [part.units for part in parts]
        super().__init__(input_size, parts, sum(part.output_size for part in parts), sum(units))
        self.first = [sum(units[:k]) for k in range(len(units))]

    def flow(self, x: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
        return torch.cat([run(k, x) for k in range(len(self.cells))], -1)

    def is_last(self, k: int) -> bool:
        return True

    def units_of(self, k: int, units: Tensor) -> Tensor:
        own = units - self.first[k]
        return own[(own >= 0) & (own < self.cells[k].units)]
