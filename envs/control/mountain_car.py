"""MountainCar: an underpowered car must swing back and forth to climb a hill.

Source: Moore (1990), "Efficient memory-based learning for robot control"; Gymnasium's `MountainCar-v0` at the default
parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.render import COLOURS, GREY, Canvas

MIN_POSITION, MAX_POSITION = -1.2, 0.6
MAX_SPEED = 0.07


@dataclass(frozen=True)
class MountainCarState:
    """`physics` [B, 2]: position and velocity, in the units of the 1990 task."""

    physics: Tensor


class MountainCar(BatchedEnv):
    """MountainCar with per-copy physics.

    Observation: [position, velocity], float32 [B, 2]. Actions: 0 pushes left, 1 does not push, 2 pushes right.
    Reward -1 on every step. Terminates when position >= `goal_position` and velocity >= `goal_velocity`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "gravity": Param(0.0025, 0.0, 0.1, "pull of the slope, per step"),
        "force": Param(0.001, -0.1, 0.1, "force of a push, per step; a negative one swaps the actions"),
        "goal_position": Param(0.5, MIN_POSITION, MAX_POSITION, "position of the flag"),
        "goal_velocity": Param(0.0, -MAX_SPEED, MAX_SPEED, "least velocity at the flag"),
    }
    SCORE: ClassVar[tuple[float, float]] = (-200.0, -110.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 200

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A bounded position and velocity; three pushes."""
        low = np.array([MIN_POSITION, -MAX_SPEED], np.float32)
        high = np.array([MAX_POSITION, MAX_SPEED], np.float32)
        return Box(low, high, dtype=np.float32), Discrete(3)

    def draw_state(self) -> MountainCarState:
        """Position uniform in [-0.6, -0.4), at rest."""
        position = self.uniform(-0.6, -0.4, self.num_envs)
        return MountainCarState(torch.stack((position, torch.zeros_like(position)), 1))

    def advance(
        self, state: MountainCarState, action: Tensor
    ) -> tuple[MountainCarState, Tensor, Tensor, dict[str, Tensor]]:
        """One step; the left wall stops the car."""
        p = self.params
        position, velocity = state.physics.unbind(1)
        push = torch.addcmul(velocity, action - 1, p["force"])
        velocity = torch.addcmul(push, p["gravity"], torch.cos(3 * position), value=-1).clamp(-MAX_SPEED, MAX_SPEED)
        position = (position + velocity).clamp(MIN_POSITION, MAX_POSITION)
        # A float32 clamp returns float32(-1.2), which is below the float64 bound: <= is true exactly at the wall.
        velocity = torch.where(position <= MIN_POSITION, velocity.clamp(min=0.0), velocity)
        terminated = (position >= p["goal_position"]) & (velocity >= p["goal_velocity"])
        return MountainCarState(torch.stack((position, velocity), 1)), -torch.ones_like(position), terminated, {}

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The car in its valley, and the flag."""

        def height(x: float) -> float:
            return 0.45 * math.sin(3 * x) + 0.55

        x, goal = float((state or self.state).physics[index, 0]), float(self.params["goal_position"][index])
        canvas = Canvas((-1.2, 0.6), (-0.05, 1.2))
        canvas.line(*[(-1.2 + i * 0.02, height(-1.2 + i * 0.02)) for i in range(91)], colour=GREY, width=3)
        canvas.line((goal, height(goal)), (goal, height(goal) + 0.15), width=2)
        top = height(goal) + 0.15
        canvas.area((goal, top), (goal + 0.07, top - 0.03), (goal, top - 0.06), colour=COLOURS[3])
        canvas.disc(x, height(x) + 0.035, 0.04, COLOURS[0])
        return canvas.array()

    def observe(self, state: MountainCarState) -> Tensor:
        """Position and velocity."""
        return state.physics
