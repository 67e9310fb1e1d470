"""PackNet (Mallya & Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.isolation import Masked
from lifelong.envs.options import Share, Steps


class PackNet(Masked):
    """A task trains all weights that are free, keeps the largest of them, and sets the rest to zero for the next
    (section 3). What it keeps is frozen; later tasks read it, too.

    Pruned is by magnitude, layer by layer, all weight matrices of encoder and cell. In the rest of its segment a task
    trains the weights that it has kept ("re-training").

    Args:
        keep: share of the free weights that a task keeps; 0: as many as every task will have in the end if all that the
            stream has get the same (Wolczyk et al. 2021, *Continual World*), so that the last takes all that are left
            and a task that is added afterwards finds none.
        prune_after: steps of its training after which a task is pruned; 0, or more than it has: when it ends.
        options: see `Masked`.
    """

    def __init__(self, *, keep: Share = 0.0, prune_after: Steps = 0, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= keep <= 1 or prune_after < 0:
            raise ValueError("keep must lie in [0, 1], prune_after must not be negative")
        self.keep, self.prune_after = keep, prune_after
        self.begun = 0  # step at which the task in view began
        self.pruned: list[int] = []  # tasks

    def first_mask(self, ctx: Context, task: int) -> dict[str, Tensor]:
        self.begun = ctx.step
        return {name: torch.ones_like(frozen) for name, frozen in self.frozen.items()}

    def share(self, ctx: Context, task: int) -> float:
        """Share of the free weights that `task` keeps."""
        return self.keep or 1.0 / max(1, ctx.policy.tasks - self.order.index(task))

    def prune(self, ctx: Context, task: int) -> None:
        """Keep the largest of the weights that the task in view has trained."""
        self.pruned.append(task)
        for name, movable in self.movable.items():
            size = self.parameters[name].detach().abs().where(movable, -1.0).flatten()
            count = round(self.share(ctx, task) * int(movable.sum()))
            kept = torch.zeros_like(movable).flatten()
            kept[size.topk(count).indices] = True
            self.narrow(ctx, name, self.frozen[name] | kept.view_as(movable))

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        late = self.prune_after and ctx.step - self.begun >= self.prune_after
        if late and self.now is not None and self.now not in self.pruned:
            self.prune(ctx, self.now)

    def leave(self, ctx: Context, task: int) -> None:
        if task not in self.pruned:
            self.prune(ctx, task)
        super().leave(ctx, task)
        self.store = {name: value * self.frozen[name] for name, value in self.store.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "begun": self.begun, "pruned": list(self.pruned)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.begun, self.pruned = saved["begun"], list(saved["pruned"])
