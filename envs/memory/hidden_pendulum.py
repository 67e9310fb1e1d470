"""Pendulum of which only the position is seen.

Source: POPGym (see `envs.memory.popgym`), dynamics of Gymnasium's `Pendulum-v1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.envs.base import Param
from lifelong.envs.control.pendulum import Pendulum, PendulumState

#: half of the largest cost of a step
MIDDLE = 16.2736044 / 2


class PositionOnlyPendulum(Pendulum):
    """Pendulum without its velocity; see `Pendulum` for dynamics and parameters.

    Observation: [cos angle, sin angle], float32 [B, 2]. Rewards of Pendulum are moved and scaled, so that the worst
    return is -1 and the best 1: (reward / 8.137 + 1) / `max_episode_steps` (without a limit 1/200). POPGym's easy,
    medium and hard have limits of 200, 150 and 100 steps.
    """

    SCORE: ClassVar[tuple[float, float]] = (0.24, 0.9)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Cosine and sine; one bounded torque."""
        return Box(-1.0, 1.0, (2,), np.float32), super().spaces()[1]

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        """One step of Pendulum with the reward moved and scaled."""
        following, reward, terminated, info = super().advance(state, action)
        limit = self.params["max_episode_steps"]
        return following, (reward / MIDDLE + 1.0) / torch.where(limit > 0, limit, 200), terminated, info

    def observe(self, state: Any) -> Tensor:
        """Cosine and sine of the angle."""
        angle = state.physics[:, 0]
        return torch.stack((angle.cos(), angle.sin()), 1)


@dataclass(frozen=True)
class NoisyPendulumState:
    """`physics` float32 [B, 2] as in `Pendulum`; `noise` float32 [B, 2], standard normal, of what is seen of it."""

    physics: Tensor
    noise: Tensor


class NoisyPositionOnlyPendulum(PositionOnlyPendulum):
    """Pendulum whose position is seen with noise; see `PositionOnlyPendulum`.

    Observation: [cos angle, sin angle], float32 [B, 2], with normal noise of standard deviation `noise` added and
    clipped to [-1, 1]. POPGym's easy, medium and hard have `noise` 0.1, 0.2 and 0.3, and 200 steps.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        **Pendulum.PARAMS,
        "noise": Param(0.1, 0.0, 100.0, "standard deviation of what is added to the observation"),
    }

    def draw_state(self) -> Any:
        """As in `Pendulum`, and noise."""
        return NoisyPendulumState(super().draw_state().physics, self._draw())

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        """One step of Pendulum, and other noise."""
        following, reward, terminated, info = super().advance(PendulumState(state.physics), action)
        return NoisyPendulumState(following.physics, self._draw()), reward, terminated, info

    def observe(self, state: Any) -> Tensor:
        """The position with noise."""
        return (super().observe(state) + self.params["noise"].unsqueeze(1) * state.noise).clamp(-1.0, 1.0)

    def _draw(self) -> Tensor:
        return torch.empty(self.num_envs, 2, device=self.device).normal_(generator=self.generator)
