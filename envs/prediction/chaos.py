"""Chaos: predict the next point of one of several chaotic systems, whose speed may drift.

Equations and constants as they are collected in dysts (Gilpin 2021, arXiv 2110.05266), from: Rossler 1976, Thomas 1999,
Halvorsen (Sprott 2010), Chen & Ueta 1999, Dadras & Momeni 2009, Sprott 1994 (case B).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError, unknown_name
from lifelong.envs.options import Range

LIMIT = 100.0  # of what is observed and predicted, in standard deviations
FINEST = 200  # steps of the integration in a period, at least
#: points that episodes begin at are seen on trajectories, after the periods in which these have come to the attractor
TRAJECTORIES, SEEN, BURN_IN, COARSE = 64, 16, 10, 64
STARTS = TRAJECTORIES * SEEN
Velocity = tuple[Tensor, Tensor, Tensor]


class System(NamedTuple):
    """A system of three equations."""

    velocity: Callable[[Tensor, Tensor, Tensor], Velocity]
    #: its dominant period, and a point near its attractor
    period: float
    start: tuple[float, float, float]


def _rossler(x: Tensor, y: Tensor, z: Tensor) -> Velocity:
    return -y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)


def _thomas(x: Tensor, y: Tensor, z: Tensor) -> Velocity:
    return -1.85 * x + 10.0 * y.sin(), -1.85 * y + 10.0 * z.sin(), -1.85 * z + 10.0 * x.sin()


def _halvorsen(x: Tensor, y: Tensor, z: Tensor) -> Velocity:
    return -1.4 * x - 4 * (y + z) - y * y, -1.4 * y - 4 * (z + x) - z * z, -1.4 * z - 4 * (x + y) - x * x


def _chen(x: Tensor, y: Tensor, z: Tensor) -> Velocity:
    return 35.0 * (y - x), -7.0 * x - x * z + 28.0 * y, x * y - 3.0 * z


def _dadras(x: Tensor, y: Tensor, z: Tensor) -> Velocity:
    return y - 3.0 * x + 2.7 * y * z, 1.7 * y - x * z + z, 2.0 * x * y - 9.0 * z


def _sprott_b(x: Tensor, y: Tensor, z: Tensor) -> Velocity:
    return y * z, x - y, 1.0 - x * y


SYSTEMS: dict[str, System] = {
    "rossler": System(_rossler, 5.9086, (6.5134412, 0.4772013, 0.34164294)),
    "thomas": System(_thomas, 4.969, (2.199442, 2.3634225, 3.220197)),
    "halvorsen": System(_halvorsen, 1.4889, (-8.6807408, -2.4741399, 0.070775762)),
    "chen": System(_chen, 0.58689, (3.2689697, 5.2990458, 19.435349)),
    "dadras": System(_dadras, 3.2886, (1.0284085, -3.5348655, -0.72081646)),
    "sprott_b": System(_sprott_b, 11.05, (1.6878282, 1.4848132, -0.53706628)),
}


def move(velocity: Callable[..., Velocity], point: Tensor, time: Tensor | float, count: int) -> Tensor:
    """The points [..., 3] after a time, by `count` steps of the classical Runge-Kutta method."""
    h = time / count

    def flow(at: Tensor) -> Tensor:
        return torch.stack(velocity(*at.unbind(-1)), -1)

    for _ in range(count):
        a = flow(point)
        b = flow(point + 0.5 * h * a)
        c = flow(point + 0.5 * h * b)
        point = point + h / 6.0 * (a + 2.0 * b + 2.0 * c + flow(point + h * c))
    return point


@lru_cache(maxsize=8)
def attractor(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the attractor float32 [STARTS, 3], and their mean and standard deviation [3]."""
    system = SYSTEMS[name]
    noise = torch.from_numpy(np.random.default_rng(0).normal(0.0, 0.01, (TRAJECTORIES, 3)))
    at = torch.tensor(system.start, dtype=torch.float64) * (1.0 + noise)
    at = move(system.velocity, at, BURN_IN * system.period, BURN_IN * COARSE)
    seen = []
    for _ in range(SEEN):
        at = move(system.velocity, at, 0.375 * system.period, 3 * COARSE // 8)
        seen.append(at)
    point = torch.cat(seen)
    return point.float(), point.mean(0).float(), point.std(0).float()


@dataclass(frozen=True)
class ChaosState:
    """`point` float32 [B, 3]: x, y, z; `step` int64 [B]: steps of the episode so far."""

    point: Tensor
    step: Tensor


class Chaos(BatchedEnv):
    """The next point of a chaotic trajectory.

    Observation: the point, less the mean and over the standard deviation of the attractor, float32 [B, 3]. The action
    is the prediction of the next observation. Its reward is 1 - |prediction - truth|^2 / |observation - truth|^2, at
    least -1, over `length`: the return is 1 if all predictions are right, and 0 if each repeats what is seen. Every
    step's info has the truth, `target` [B, 3], and `target_mask` [B], always true. An episode begins on the attractor,
    has `length` steps, and then terminates. A step is 1 / `points` of the system's period, times `pace`.

    Args:
        num_envs: number of copies B.
        system: rossler, thomas, halvorsen, chen, dadras or sprott_b.
        length: steps of an episode.
        points: steps of a period.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: another system; see also `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {"pace": Param(1.0, 0.0, 4.0, "how fast time goes")}
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        system: Literal["rossler", "thomas", "halvorsen", "chen", "dadras", "sprott_b"] = "rossler",
        length: Annotated[int, Range(1, 10**6)] = 200,
        points: Annotated[int, Range(4, 1000)] = 50,
        **kwargs: Any,
    ) -> None:
        if system not in SYSTEMS:
            raise EnvError(unknown_name("system of Chaos", str(system), SYSTEMS))
        self.system, self.length, self.points = system, length, points
        self.time, self.count = SYSTEMS[system].period / points, math.ceil(FINEST / points)
        device = kwargs.get("device", "cpu")
        self.starts, self.center, self.scale = (each.to(device) for each in attractor(system))
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A point; a point."""
        return Box(-LIMIT, LIMIT, (3,), np.float32), Box(-LIMIT, LIMIT, (3,), np.float32)

    def draw_state(self) -> ChaosState:
        """A point of the attractor."""
        point = self.starts[self.randint(STARTS, self.num_envs)]
        return ChaosState(point, torch.zeros_like(self.age_B))

    def advance(self, state: ChaosState, action: Tensor) -> tuple[ChaosState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the prediction and go on."""
        time = (self.time * self.params["pace"]).unsqueeze(1)
        point = move(SYSTEMS[self.system].velocity, state.point, time, self.count)
        seen, after = self.observe(state), ChaosState(point, state.step + 1)
        target = self.observe(after)
        error = (action - target).square().sum(1) / ((seen - target).square().sum(1) + 1e-12)
        reward = (1.0 - error).clamp(min=-1.0) / self.length
        info = {"target": target, "target_mask": torch.ones_like(reward, dtype=torch.bool)}
        return after, reward, after.step >= self.length, info

    def observe(self, state: ChaosState) -> Tensor:
        """The point, standardised."""
        return ((state.point - self.center) / self.scale).clamp(-LIMIT, LIMIT)
