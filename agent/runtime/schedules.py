"""What changes over a run because the config says so: learning rate, weights of the loss, clip range, chunk length."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.config import Config
from lifelong.agent.objectives.base import Objective
from lifelong.agent.schedules import Ramp


class Schedules:
    """Sets the scheduled options of a run's optimiser and objective, as functions of the step alone.

    A learning rate on a GPU is a tensor that is written into, as a captured chunk reads it there.

    Args:
        config: of the run.
        optimizer: whose `lr` may be scheduled.
        objective: whose `SCHEDULED` options may be.
    """

    def __init__(self, config: Config, optimizer: torch.optim.Optimizer, objective: Objective) -> None:
        self.optimizer, self.objective = optimizer, objective
        self.steps, short = config.rollout.steps, config.rollout.short_first
        self.lengths = Ramp(short.steps, self.steps, short.over, shape=short.shape) if short.steps else None
        self.ramps: dict[str, Ramp] = {}
        for kind, spec in (("optimizer", config.optimizer), ("objective", config.objective)):
            for option in registry.scheduled(kind, registry.load(kind, spec["kind"])):
                if isinstance(spec.get(option), Mapping):
                    self.ramps[f"{kind}.{option}"] = Ramp.of(spec[option])

    def length(self, step: int) -> int:
        """The steps of the chunk that begins at `step`."""
        return round(self.lengths.at(step)) if self.lengths else self.steps

    def apply(self, step: int) -> int:
        """The values of a step, for the chunk that begins there, and how many steps that has."""
        for key, ramp in self.ramps.items():
            kind, _, option = key.partition(".")
            if kind == "objective":
                setattr(self.objective, option, ramp.at(step))
                continue
            for group in self.optimizer.param_groups:
                device = group["params"][0].device
                if isinstance(group[option], Tensor) and group[option].device == device:
                    group[option].fill_(ramp.at(step))
                else:
                    value = ramp.at(step)
                    group[option] = torch.tensor(value, device=device) if device.type == "cuda" else value
        return self.length(step)

    def report(self, step: int) -> dict[str, float]:
        """The values of a step, for the log."""
        lengths = {"schedule/chunk_steps": float(self.length(step))} if self.lengths else {}
        return {**{f"schedule/{key.partition('.')[2]}": ramp.at(step) for key, ramp in self.ramps.items()}, **lengths}
