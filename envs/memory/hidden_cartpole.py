"""CartPole of which only positions or only velocities are seen.

Source: POPGym (see `envs.memory.popgym`), dynamics of Gymnasium's `CartPole-v1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.control.cartpole import THETA_LIMIT, X_LIMIT, CartPole, CartPoleState


class PositionOnlyCartPole(CartPole):
    """CartPole without its velocities; see `CartPole` for dynamics and parameters.

    Observation: [position, angle], float32 [B, 2]. Every step gives 1 / `max_episode_steps` (without a limit 1/200), so
    that the best return is 1. POPGym's easy, medium and hard have limits of 200, 400 and 600 steps.
    """

    SCORE: ClassVar[tuple[float, float]] = (0.11, 1.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 200
    #: of the state, what is seen
    SEEN: ClassVar[slice] = slice(0, 4, 2)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Two unbounded numbers; two actions."""
        return Box(-np.inf, np.inf, (2,), np.float32), Discrete(2)

    def advance(self, state: CartPoleState, action: Tensor) -> tuple[CartPoleState, Tensor, Tensor, dict[str, Tensor]]:
        """One step of CartPole with the reward scaled."""
        following, reward, terminated, info = super().advance(state, action)
        limit = self.params["max_episode_steps"]
        return following, reward / torch.where(limit > 0, limit, self.MAX_EPISODE_STEPS), terminated, info

    def eager_step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """See `BatchedEnv.eager_step`; CartPole's own has its rewards and observations."""
        return BatchedEnv.eager_step(self, action)

    def observe(self, state: CartPoleState) -> Tensor:
        """What is seen of the state."""
        return super().observe(state)[:, self.SEEN]


class VelocityOnlyCartPole(PositionOnlyCartPole):
    """CartPole without its positions; see `PositionOnlyCartPole`.

    Observation: [velocity, angular velocity], float32 [B, 2]. POPGym shows the positions at a reset, which is a slip of
    its own; here the first observation has the velocities, too.
    """

    SEEN: ClassVar[slice] = slice(1, 4, 2)


@dataclass(frozen=True)
class NoisyCartPoleState:
    """`physics` float32 [B, 4] as in `CartPole`; `noise` float32 [B, 2], standard normal, of what is seen of it."""

    physics: Tensor
    noise: Tensor


class NoisyPositionOnlyCartPole(PositionOnlyCartPole):
    """CartPole whose positions are seen with noise; see `PositionOnlyCartPole`.

    Observation: [position, angle], float32 [B, 2], with normal noise of standard deviation `noise` added and clipped to
    twice the limits. POPGym's easy, medium and hard have `noise` 0.1, 0.2 and 0.3, and 200 steps.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        **CartPole.PARAMS,
        "noise": Param(0.1, 0.0, 100.0, "standard deviation of what is added to the observation, m and rad"),
    }

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Two numbers up to twice the limits; two actions."""
        self._high = (2 * X_LIMIT, 2 * THETA_LIMIT)
        high = np.array(self._high, np.float32)
        return Box(-high, high, dtype=np.float32), Discrete(2)

    def draw_state(self) -> Any:
        """As in `CartPole`, and noise."""
        return NoisyCartPoleState(super().draw_state().physics, self._draw())

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        """One step of CartPole, and other noise."""
        following, reward, terminated, info = super().advance(CartPoleState(state.physics), action)
        return NoisyCartPoleState(following.physics, self._draw()), reward, terminated, info

    def observe(self, state: Any) -> Tensor:
        """The positions with noise."""
        seen = super().observe(state) + self.params["noise"].unsqueeze(1) * state.noise
        position, angle = seen.unbind(1)
        x, theta = (float(np.float32(limit)) for limit in self._high)
        return torch.stack((position.clamp(-x, x), angle.clamp(-theta, theta)), 1)

    def _draw(self) -> Tensor:
        return torch.empty(self.num_envs, 2, device=self.device).normal_(generator=self.generator)
