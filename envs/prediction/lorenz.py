"""Lorenz: predict the next point of a chaotic trajectory.

Source: Lorenz (1963), "Deterministic Nonperiodic Flow", equations 25-27, as a prediction task: Hess, Monfared, Brenner
& Durstewitz (2023), "Generalized Teacher Forcing for Learning Chaotic Dynamics", arXiv 2306.04406.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range

DEFAULTS = (10.0, 28.0, 8.0 / 3.0)  # sigma, rho, beta
#: mean and standard deviation of the three coordinates on the attractor at the default parameters
CENTER, SCALE = (0.0, 0.0, 23.55), (7.93, 9.02, 8.62)
LIMIT = 100.0  # of what is observed and predicted, in standard deviations
STEP = 0.01  # of the integration, at most
STARTS, BURN_IN = 4096, 40.0  # points that episodes begin at, and the time in which they have come to the attractor


def flow(point: Tensor, sigma: Tensor | float, rho: Tensor | float, beta: Tensor | float) -> Tensor:
    """The velocity of points [..., 3]."""
    x, y, z = point.unbind(-1)
    return torch.stack((sigma * (y - x), x * (rho - z) - y, x * y - beta * z), -1)


def move(point: Tensor, dt: float, *constants: Tensor | float) -> Tensor:
    """The points [..., 3] after a time of `dt`, by the classical Runge-Kutta method in steps of `STEP` at most."""
    count = math.ceil(dt / STEP - 1e-9)
    h = dt / count
    for _ in range(count):
        a = flow(point, *constants)
        b = flow(point + 0.5 * h * a, *constants)
        c = flow(point + 0.5 * h * b, *constants)
        d = flow(point + h * c, *constants)
        point = point + h / 6.0 * (a + 2.0 * b + 2.0 * c + d)
    return point


@lru_cache(maxsize=1)
def starts() -> Tensor:
    """Points on the attractor of the default parameters, float32 [STARTS, 3]."""
    drawn = np.random.default_rng(0).uniform(-1.0, 1.0, (STARTS, 3))
    point = torch.from_numpy(np.array(CENTER) + np.array(SCALE) * drawn)
    return move(point, BURN_IN, *DEFAULTS).float()


@dataclass(frozen=True)
class LorenzState:
    """`point` float32 [B, 3]: x, y, z; `step` int64 [B]: steps of the episode so far."""

    point: Tensor
    step: Tensor


class Lorenz(BatchedEnv):
    """The Lorenz system x' = sigma (y - x), y' = x (rho - z) - y, z' = x y - beta z with per-copy parameters.

    Observation: x, y, z, less their mean and over their standard deviation on the attractor of the default parameters,
    float32 [B, 3]. The action is the prediction of the next observation. Its reward is 1 - |prediction - truth|^2 /
    |observation - truth|^2, at least -1, over `length`: the return is 1 if all predictions are right, and 0 if each
    repeats what is seen. Every step's info has the truth, `target` [B, 3], and `target_mask` [B], always true. An
    episode begins on the attractor, has `length` steps, and then terminates.

    Args:
        num_envs: number of copies B.
        length: steps of an episode.
        dt: time between two steps.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "sigma": Param(DEFAULTS[0], 1.0, 30.0, "sigma, the Prandtl number"),
        "rho": Param(DEFAULTS[1], 1.0, 60.0, "rho, the Rayleigh number over its critical value; chaos from 24.74 on"),
        "beta": Param(DEFAULTS[2], 0.1, 10.0, "beta, of the shape of the cells"),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        length: Annotated[int, Range(1, 10**6)] = 200,
        dt: Annotated[float, Range(1e-4, 0.2)] = 0.02,
        **kwargs: Any,
    ) -> None:
        self.length, self.dt = length, dt
        device = kwargs.get("device", "cpu")
        self.center = torch.tensor(CENTER, device=device)
        self.scale = torch.tensor(SCALE, device=device)
        self.starts = starts().to(device)
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A point; a point."""
        return Box(-LIMIT, LIMIT, (3,), np.float32), Box(-LIMIT, LIMIT, (3,), np.float32)

    def draw_state(self) -> LorenzState:
        """A point of the attractor of the default parameters."""
        point = self.starts[self.randint(STARTS, self.num_envs)]
        return LorenzState(point, torch.zeros(self.num_envs, dtype=torch.int64, device=self.device))

    def advance(self, state: LorenzState, action: Tensor) -> tuple[LorenzState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the prediction and go on."""
        seen, after = self.observe(state), LorenzState(self._moved(state.point), state.step + 1)
        target = self.observe(after)
        error = (action - target).square().sum(1) / ((seen - target).square().sum(1) + 1e-12)
        reward = (1.0 - error).clamp(min=-1.0) / self.length
        info = {"target": target, "target_mask": torch.ones_like(reward, dtype=torch.bool)}
        return after, reward, after.step >= self.length, info

    def observe(self, state: LorenzState) -> Tensor:
        """The point, standardised."""
        return ((state.point - self.center) / self.scale).clamp(-LIMIT, LIMIT)

    def _moved(self, point: Tensor) -> Tensor:
        constants = (self.params[name] for name in ("sigma", "rho", "beta"))
        return move(point, self.dt, *constants)
