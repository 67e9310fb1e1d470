"""Values that change over a run: `lr: {from: 1e-3, to: 0, over: 1_000_000}` in place of a number. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lifelong.agent.errors import unknown_name
from lifelong.envs.options import LARGEST, brief, problem

SHAPES = ("linear", "cosine", "exponential")
_KEYS = ("from", "to", "over", "after", "shape")


@dataclass(frozen=True)
class Ramp:
    """From one number to another over so many environment steps, and constant before and afterwards.

    linear: by equal amounts; cosine: by half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5, without
    restarts); exponential: by equal factors.

    Attributes:
        first: before `after` steps.
        last: from `after + over` steps on.
        over: environment steps, all copies together.
        after: environment steps before it begins.
        shape: one of `SHAPES`.
    """

    first: float
    last: float
    over: int
    after: int = 0
    shape: str = "linear"

    @staticmethod
    def of(value: Mapping[str, Any]) -> Ramp:
        """What a config says."""
        rest = {key: value[key] for key in ("over", "after", "shape") if key in value}
        return Ramp(float(value["from"]), float(value["to"]), **rest)

    def at(self, step: int) -> float:
        """The value at a step."""
        share = min(1.0, max(0, step - self.after) / self.over)
        if share in (0.0, 1.0):
            return self.last if share else self.first
        if self.shape == "exponential":
            return self.first * (self.last / self.first) ** share
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.first + share * (self.last - self.first)


def ramp_problem(value: Mapping[str, Any], hint: Any) -> str | None:
    """What is wrong with a schedule of a number annotated `hint`, as a sentence that begins with its key, or None."""
    for key in value:
        if key not in _KEYS:
            return f"has an {unknown_name('key', str(key), _KEYS)}"
    for key in ("from", "to", "over"):
        if key not in value:
            return f"has no {key}; a schedule is {{from: 1e-3, to: 0, over: 1_000_000}}"
    for key in ("from", "to"):
        wrong = problem(hint, value[key])
        if wrong is not None:
            return f"has {key} {brief(value[key])}; it must be {wrong}"
    for key, low in (("over", 1), ("after", 0)):
        steps = value.get(key, low)
        if isinstance(steps, bool) or not isinstance(steps, int) or not low <= steps <= LARGEST:
            return f"has {key} {brief(steps)}; it must be an integer of at least {low}"
    shape = value.get("shape", "linear")
    if shape not in SHAPES:
        return f"has an {unknown_name('shape', str(shape), SHAPES)}"
    if shape == "exponential" and not (value["from"] > 0 and value["to"] > 0):
        return f"has shape exponential from {value['from']:g} to {value['to']:g}; both must be above 0"
    return None
