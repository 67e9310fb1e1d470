"""CompoNet: policies that compose those of earlier tasks (Malagón, Ceberio & Lozano 2024, ICML, arXiv 2404.14870)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.modules.composed import ComposedHead
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.progressive import NEVER, Progressive

CURRENT = "actor.current"


class CompoNet(Progressive):
    """A module for every task: a column of the encoder and of the cell that hears no other one, and an actor that may
    take over what earlier modules would do, mix them, or do otherwise (see `ComposedHead`). Then it is frozen.

    So what passes from task to task are policies and no features. The critic exists once a task and reads the task's
    own column. What belongs to no unit (the keys of a matrix memory) is the first task's, and heard by all.

    When all columns are taken, a further task's module and critic read the units of all of them.

    Args:
        columns: of units; 0: one for every task that the stream has when the run begins.
        options: see `Isolation`.
    """

    composes: ClassVar[bool] = True
    ANEW: ClassVar[tuple[str, ...]] = ("critic.",)

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        assert isinstance(ctx.policy.actor, ComposedHead)  # the policy is built so

    def lay_out(self, count: int) -> None:
        writes, reads = self.columns_of(count)
        actor = self.policy.actor
        assert isinstance(actor, ComposedHead)
        self.level, self.count = {}, count
        #: the columns that entries of the critic read
        self.reads = {name: reads[name].expand(self.parameters[name].shape) for name in self.anew}
        for name, parameter in self.parameters.items():
            column, read = writes[name].clamp(min=0), reads[name]
            own = (read == column) | (read < 0)
            if name.startswith("actor.") and name != CURRENT:
                rows = torch.arange(len(parameter), device=parameter.device) * actor.modules_count // len(parameter)
                column = rows.to(torch.int16).view(-1, *[1] * (parameter.dim() - 1))
                own = (read == column) | (read < 0) | (column >= count)
            level = torch.where(own, column, torch.full_like(column, NEVER))
            self.level[name] = level.expand(parameter.shape)

    def column(self, task: int) -> int:
        return self.order.index(task)

    def first_mask(self, ctx: Context, task: int) -> dict[str, Tensor]:
        column, masks = self.column(task), super().first_mask(ctx, task)
        for name, read in self.reads.items():
            masks[name] = (read == column) | (read < 0) | torch.full_like(read, column >= self.count, dtype=torch.bool)
        return masks

    def pointer(self, task: int) -> Tensor:
        """Which module acts in the view of a task."""
        pointer = torch.zeros_like(self.parameters[CURRENT])
        pointer[self.column(task)] = 1.0
        return pointer

    def shared(self, task: int) -> dict[str, Tensor]:
        return {**super().shared(task), CURRENT: self.pointer(task)}

    def enter(self, task: int) -> None:
        self.store[CURRENT] = self.pointer(task)
        self.frozen[CURRENT] = torch.ones_like(self.store[CURRENT], dtype=torch.bool)
        super().enter(task)

    def report(self) -> dict[str, float]:
        """As all that are masked; not of the pointer, of which there is nothing to say."""
        return {name: value for name, value in super().report().items() if not name.endswith(CURRENT)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        if self.now is not None:  # a new module has made the pointer longer
            self.enter(self.now)
