"""What strategies share that look back: when they do, and a quadratic penalty around the parameters of then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.policy import Outputs
from lifelong.agent.strategies.base import Context, Source, Strategy
from lifelong.replay.chunk import Chunk


class Consolidating(Strategy):
    """Looks back whenever a task ends; with `every`, at the first chunk after so many steps instead.

    Args:
        every: steps; 0: at boundaries, which must be given.
    """

    def __init__(self, every: int) -> None:
        if every < 0:
            raise ValueError(f"every is {every}; it must not be negative (0: at boundaries)")
        self.every = every
        self.needs_boundaries = every == 0
        self.last_clock = 0

    def consolidate(self, ctx: Context, source: Source) -> None:
        """Keep what is needed of the task that ended, or of those in training; `source` gives fresh experience."""
        raise NotImplementedError

    def on_task_end(self, ctx: Context, source: Source) -> None:
        if not self.every:
            self.consolidate(ctx, source)

    def on_clock(self, ctx: Context, source: Source) -> None:
        if self.every and ctx.step - self.last_clock >= self.every:
            self.last_clock = ctx.step
            self.consolidate(ctx, source)

    def state_dict(self) -> dict[str, Any]:
        return {"last_clock": self.last_clock}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.last_clock = saved["last_clock"]


class QuadraticPenalty(Consolidating):
    """Adds strength/2 * sum_i importance_i (theta_i - anchor_i)^2 to the loss.

    Args:
        strength: of the penalty.
        critic: whether the critic is held, too; acting on old tasks does not use it.
        every: see `Consolidating`.
    """

    def __init__(self, strength: float, critic: bool, every: int) -> None:
        super().__init__(every)
        if strength < 0:
            raise ValueError(f"strength is {strength}; it must not be negative")
        self.strength, self.critic = strength, critic
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.penalty: Tensor | None = None

    def setup(self, ctx: Context, seed: int) -> None:
        everything = dict(ctx.policy.named_parameters())
        self.parameters = {n: p for n, p in everything.items() if self.critic or not n.startswith("critic.")}

    def zeros(self) -> dict[str, Tensor]:
        """A zero for every number that is held: name -> tensor of the parameter's shape."""
        return {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}

    def hold(self, importance: Mapping[str, Tensor]) -> None:
        """From now on, the parameters as they are now, with this importance."""
        self.importance = dict(importance)
        self.anchor = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        if not self.importance:
            return None
        terms = [(f * (self.parameters[n] - self.anchor[n]).square()).sum() for n, f in self.importance.items()]
        penalty = 0.5 * self.strength * torch.stack(terms).sum()
        self.penalty = penalty.detach()
        return penalty

    def report(self) -> dict[str, float]:
        return {} if self.penalty is None else {"penalty": float(self.penalty)}

    def state_dict(self) -> dict[str, Any]:
        held = {"importance": self.importance, "anchor": self.anchor, "penalty": self.penalty}
        return {**super().state_dict(), **held}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.importance = self.grown(saved["importance"])
        self.anchor = {n: grown(a, self.parameters[n].detach()) for n, a in saved["anchor"].items()}
        self.penalty = saved["penalty"]

    def grown(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was kept of every parameter, with zeros for what new tasks have added to it."""
        return {name: grown(tensor, torch.zeros_like(self.parameters[name])) for name, tensor in saved.items()}


def normalized(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divided by the mean over all parameters, so that a strength means the same in every task."""
    scale = torch.cat([f.flatten() for f in importance.values()]).mean().clamp(min=1e-12)
    return {name: f / scale for name, f in importance.items()}
