"""The classic tasks with what wears out in a machine: friction, delay, a weak motor, noisy and shifted sensors.

All of it are parameters, so it may move smoothly (schedule `drift`) or differ from task to task and copy to copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.control.acrobot import Acrobot, AcrobotState
from lifelong.envs.control.cartpole import CartPole, CartPoleState
from lifelong.envs.control.mountain_car import MountainCar, MountainCarState
from lifelong.envs.control.pendulum import Pendulum, PendulumState

MOST = 8  # steps of delay

WEAR: dict[str, Param] = {
    "friction": Param(0.0, 0.0, 1.0, "share of the velocities that is lost in a step"),
    "delay": Param(0, 0, MOST, "steps until an action acts", integer=True),
    "noise": Param(0.0, 0.0, 100.0, "standard deviation of what is added to every number that is observed"),
    "offset": Param(0.0, 0.0, 100.0, "standard deviation of the constants that are added to what is observed"),
    "offset_seed": Param(0, 0, 2**31, "which constants", integer=True),
}


@lru_cache(maxsize=4096)
def constants(seed: int, count: int) -> Tensor:
    """Standard normal numbers of a seed, float32 [count]."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32))


@dataclass(frozen=True)
class WornState:
    """`physics` float32 [B, n] as in the task itself; `waiting` [B, 8, ...]: actions that were given, the last one
    first; `noise` float32 [B, observed]: standard normal."""

    physics: Tensor
    waiting: Tensor
    noise: Tensor


class Worn(BatchedEnv):
    """Mixed into a classic task, it adds the parameters `WEAR`; the strength of the motor is the task's own parameter.

    Velocities are multiplied by 1 - friction after every step; an action acts `delay` steps after it was given, and
    before the first one nothing is done (CartPole, which cannot do nothing, is pushed to the left); the observation
    gets a constant vector, `offset` times the normal numbers of `offset_seed` (Muppidi et al. 2024; Tang et al. 2025
    have offsets of 2), and noise.
    """

    #: of the task itself: the class of its state, which numbers of it are velocities, and the action that does nothing
    STATE: ClassVar[Any]
    VELOCITIES: ClassVar[tuple[int, ...]]
    IDLE: ClassVar[int] = 0

    def draw_state(self) -> Any:
        """As in the task itself, with nothing waiting."""
        physics = super().draw_state().physics
        space: Any = self.single_action_space
        waiting = torch.full(
            (self.num_envs, MOST, *(space.shape or ())), self.IDLE, dtype=self._action_type, device=self.device
        )
        return WornState(physics, waiting, self._normal())

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        """A step of the task itself with the action that acts now."""
        p = self.params
        given = torch.cat((action.unsqueeze(1).to(self._action_type), state.waiting), 1)
        place = p["delay"].view(-1, *[1] * (given.dim() - 1))
        acts = given.gather(1, place.expand(-1, 1, *given.shape[2:])).squeeze(1)
        following, reward, terminated, info = super().advance(self.STATE(state.physics), acts)
        keeps = 1.0 - p["friction"]
        parts = [x * keeps if i in self.VELOCITIES else x for i, x in enumerate(following.physics.unbind(1))]
        return WornState(torch.stack(parts, 1), given[:, :-1], self._normal()), reward, terminated, info

    def observe(self, state: Any) -> Tensor:
        """What the task itself shows, shifted and with noise."""
        shown = super().observe(self.STATE(state.physics))
        return shown + self._shift_BD + self.params["noise"].unsqueeze(1) * state.noise

    def spaces(self) -> tuple[Any, Any]:
        """Numbers without bounds, for sensors may show anything; the actions of the task itself."""
        shown, actions = super().spaces()
        self._action_type: torch.dtype = getattr(torch, str(actions.dtype))
        self._observed = int(np.prod(shown.shape or ()))
        return Box(-np.inf, np.inf, shown.shape, np.float32), actions

    def eager_step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """See `BatchedEnv.eager_step`."""
        return BatchedEnv.eager_step(self, action)

    def params_changed(self) -> None:
        """What follows from the parameters."""
        super().params_changed()
        if "offset_seed" in self.params:
            rows = [constants(seed, self._observed) for seed in self.params["offset_seed"].tolist()]
            self._shift_BD = self.params["offset"].unsqueeze(1) * torch.stack(rows).to(self.device)

    def _normal(self) -> Tensor:
        return torch.empty(self.num_envs, self._observed, device=self.device).normal_(generator=self.generator)


class WornCartPole(Worn, CartPole):
    """CartPole that wears out; see `CartPole` and `Worn`."""

    PARAMS: ClassVar[dict[str, Param]] = {**CartPole.PARAMS, **WEAR}
    STATE: ClassVar[Any] = CartPoleState
    VELOCITIES: ClassVar[tuple[int, ...]] = (1, 3)


class WornAcrobot(Worn, Acrobot):
    """Acrobot that wears out; see `Acrobot` and `Worn`."""

    PARAMS: ClassVar[dict[str, Param]] = {**Acrobot.PARAMS, **WEAR}
    STATE: ClassVar[Any] = AcrobotState
    VELOCITIES: ClassVar[tuple[int, ...]] = (2, 3)
    IDLE: ClassVar[int] = 1


class WornMountainCar(Worn, MountainCar):
    """MountainCar that wears out; see `MountainCar` and `Worn`."""

    PARAMS: ClassVar[dict[str, Param]] = {**MountainCar.PARAMS, **WEAR}
    STATE: ClassVar[Any] = MountainCarState
    VELOCITIES: ClassVar[tuple[int, ...]] = (1,)
    IDLE: ClassVar[int] = 1


class WornPendulum(Worn, Pendulum):
    """Pendulum that wears out, with a motor that makes `gain` of the torque it is told; see `Pendulum` and `Worn`."""

    PARAMS: ClassVar[dict[str, Param]] = {
        **Pendulum.PARAMS,
        **WEAR,
        "gain": Param(1.0, -10.0, 10.0, "what the motor makes of the torque; a negative one turns it round"),
    }
    STATE: ClassVar[Any] = PendulumState
    VELOCITIES: ClassVar[tuple[int, ...]] = (1,)

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        """A step with the torque that the motor makes."""
        return super().advance(state, action * self.params["gain"].unsqueeze(1))
