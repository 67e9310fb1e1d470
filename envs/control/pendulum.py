"""Pendulum: swing a pendulum up and hold it there with a limited torque. Continuous actions.

Source: Gymnasium's `Pendulum-v1` at the default parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.render import COLOURS, GREY, INK, Canvas

MAX_SPEED = 8.0  # [rad/s]
MAX_TORQUE = 2.0  # [N m]


@dataclass(frozen=True)
class PendulumState:
    """`physics` [B, 2]: angle [rad] in [-pi, pi], 0 is upright, and angular velocity [rad/s]."""

    physics: Tensor


class Pendulum(BatchedEnv):
    """Pendulum with per-copy physics.

    Observation: [cos angle, sin angle, angular velocity], float32 [B, 3]. Action: torque [N m], float32 [B, 1], clipped
    to +-`max_torque`. Reward -(angle^2 + 0.1 velocity^2 + 0.001 torque^2) of the state before the step. Never
    terminates.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "g": Param(10.0, 0.0, 100.0, "gravity, m/s^2"),
        "m": Param(1.0, 0.01, 100.0, "mass, kg"),
        "l": Param(1.0, 0.01, 100.0, "length, m"),
        "max_torque": Param(MAX_TORQUE, 0.0, MAX_TORQUE, "largest torque that acts, N m"),
        "dt": Param(0.05, 0.001, 0.2, "time between two steps, s"),
    }
    SCORE: ClassVar[tuple[float, float]] = (-1400.0, -150.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 200

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Cosine, sine and a bounded velocity; one bounded torque."""
        high = np.array([1.0, 1.0, MAX_SPEED], np.float32)
        return Box(-high, high, dtype=np.float32), Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)

    def draw_state(self) -> PendulumState:
        """Angle uniform in [-pi, pi), velocity uniform in [-1, 1)."""
        angle = self.uniform(-math.pi, math.pi, self.num_envs)
        return PendulumState(torch.stack((angle, self.uniform(-1.0, 1.0, self.num_envs)), 1))

    def advance(self, state: PendulumState, action: Tensor) -> tuple[PendulumState, Tensor, Tensor, dict[str, Tensor]]:
        """One semi-implicit Euler step."""
        p = self.params
        angle, spin = state.physics.unbind(1)
        torque = torch.minimum(torch.maximum(action[:, 0], -p["max_torque"]), p["max_torque"])
        cost = angle**2 + 0.1 * spin**2 + 0.001 * torque**2
        rate = 1.5 * p["g"] / p["l"] * torch.sin(angle) + 3.0 * torque / (p["m"] * p["l"] ** 2)
        spin = torch.addcmul(spin, p["dt"], rate).clamp(-MAX_SPEED, MAX_SPEED)
        angle = torch.addcmul(angle, p["dt"], spin)
        # Kept within one turn, so that the reward needs no normalising and float32 stays accurate.
        angle = angle - 2 * math.pi * torch.round(angle / (2 * math.pi))
        return PendulumState(torch.stack((angle, spin), 1)), -cost, torch.zeros_like(cost, dtype=torch.bool), {}

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The pendulum; upright is where it should be."""
        angle = float((state or self.state).physics[index, 0])
        canvas = Canvas((-1.4, 1.4), (-1.4, 1.4))
        canvas.line((0, 0), (0, 1.2), colour=GREY, width=1)
        canvas.line((0, 0), (-math.sin(angle), math.cos(angle)), colour=COLOURS[3], width=14)
        canvas.disc(0, 0, 0.06, INK)
        return canvas.array()

    def observe(self, state: PendulumState) -> Tensor:
        """Cosine and sine of the angle, and the velocity."""
        angle, spin = state.physics.unbind(1)
        return torch.stack((angle.cos(), angle.sin(), spin), 1)
