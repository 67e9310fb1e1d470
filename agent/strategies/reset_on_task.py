"""A control: begin anew at every task, and see what having lived was worth."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.initial import Redrawing, reinitialise
from lifelong.envs.options import Steps

#: what is re-initialised -> how the names of its parameters begin
PARTS: dict[str, str | None] = {"all": "", "head": "actor.", "critic": "critic.", "optimizer": None}


class ResetOnTask(Redrawing):
    """Re-initialises parameters at every boundary but the first, from the distribution they were drawn from.

    With a parameter goes all that the optimiser keeps of it, Adam's count of steps too. With all parameters go the
    memory of every copy and the carry. Resets on a clock are those of Nikishin et al. 2022 (ICML, "The primacy bias").

    Args:
        what: `all`, the actor's `head` (those of all tasks, if each has its own), the `critic`, or only the state of
            the `optimizer`.
        every: re-initialise every so many steps instead of at boundaries; 0: at boundaries.
    """

    def __init__(self, *, what: Literal["all", "head", "critic", "optimizer"] = "all", every: Steps = 0) -> None:
        self.what, self.every = what, every
        self.needs_boundaries = every == 0
        self.resets, self.last_clock = 0, 0

    @torch.no_grad()
    def reset(self, ctx: Context) -> Tensor | None:
        """Re-initialise now; returns the units of the cell, if they are among it."""
        self.resets += 1
        prefix = PARTS[self.what]
        if prefix is None:
            ctx.optimizer.state.clear()
            return None
        fresh = ctx.policy.redrawn(self.generator)
        whole = {n: torch.ones_like(x, dtype=torch.bool) for n, x in fresh.items() if n.startswith(prefix)}
        reinitialise(ctx, fresh, whole)
        for name in whole:
            ctx.optimizer.state.pop(ctx.policy.get_parameter(name), None)
        return torch.arange(ctx.policy.cell.units, device=ctx.device) if self.what == "all" else None

    def on_task_start(self, ctx: Context) -> Tensor | None:
        return self.reset(ctx) if not self.every and ctx.segment > 0 else None

    def after_chunk(self, ctx: Context, experience: Experience) -> Tensor | None:
        if not self.every or ctx.step - self.last_clock < self.every:
            return None
        self.last_clock = ctx.step
        return self.reset(ctx)

    def idle(self) -> tuple[str, ...]:
        return () if self.every else ("after_chunk",)

    def report(self) -> dict[str, float]:
        return {"resets": float(self.resets)}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "resets": self.resets, "last_clock": self.last_clock}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.resets, self.last_clock = saved["resets"], saved["last_clock"]
