"""Progressive networks (Rusu et al. 2016) as masks over one network: a column of units for every task."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.isolation import Masked
from lifelong.agent.strategies.units import layers_of
from lifelong.envs.options import Range

#: level of an entry that nobody reads: a unit of an earlier column does not hear a later one
NEVER = 10_000


class Progressive(Masked):
    """The units of every layer are shared out to columns. The k-th task trains those of column k, which read the inputs
    and the columns up to k; its actor (and critic) reads columns up to k. Then the column is frozen (Rusu et al. 2016,
    eq. 1, without adapters).

    When all columns are taken, a further task trains its actor (and critic) alone, on all units.

    Args:
        columns: number of columns; 0: one for every task that the stream has when the run begins.
        options: see `Masked`.
    """

    def __init__(self, *, columns: Annotated[int, Range(0, NEVER - 1)] = 0, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= columns < NEVER:
            raise ValueError(f"columns is {columns}; it must lie between 0 and {NEVER - 1}")
        self.columns = columns

    def has_own(self, policy: Policy) -> list[str]:
        return []  # a bias belongs to a unit, so to a column

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.policy = ctx.policy
        self.lay_out(self.columns or ctx.policy.tasks)

    def columns_of(self, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The columns, of so many, that entries of parameters make, and that they read; -1 where that is no unit of a
        layer. They have the parameter's shape or can be expanded to it."""
        like = self.policy.critic.weight
        writes = {name: torch.full((), -1, dtype=torch.int16, device=like.device) for name in self.parameters}
        reads = dict(writes)
        for layer in layers_of(self.policy):
            if layer.size < count:
                raise ValueError(f"{layer.name} has {layer.size} units, too few for {count} columns")
            column = (torch.arange(layer.size, device=like.device) * count // layer.size).to(torch.int16)
            for found, parts in ((writes, layer.incoming), (reads, layer.outgoing)):
                for part in parts:
                    if part.parameter not in self.parameters:  # a free critic
                        continue
                    shape = self.parameters[part.parameter].shape
                    line = torch.full((shape[part.dim],), -1, dtype=torch.int16, device=like.device)
                    line[part.index] = column.unsqueeze(1).expand_as(part.index)
                    found[part.parameter] = line.view([-1 if d == part.dim else 1 for d in range(len(shape))])
        return writes, reads

    def lay_out(self, count: int) -> None:
        """Share the units out to so many columns."""
        writes, reads = self.columns_of(count)
        #: the column from which on an entry is read; what belongs to no unit of a layer is the first task's
        self.level: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            level, column = reads[name].clamp(min=0), writes[name].clamp(min=0)
            if name not in self.anew:  # a head belongs to its task
                level = torch.where(level <= column, column, torch.full_like(level, NEVER))
            self.level[name] = level.expand(parameter.shape)
        self.count = count

    def column(self, task: int) -> int:
        """The column that a task trains, or one above the last if all were taken when it came."""
        return min(self.order.index(task), self.count)

    def first_mask(self, ctx: Context, task: int) -> dict[str, Tensor]:
        return {name: level <= self.column(task) for name, level in self.level.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "columns": self.count}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.lay_out(saved["columns"])
