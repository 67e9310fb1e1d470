"""CartPole: keep a pole upright on a cart by pushing the cart left or right.

Source: Barto, Sutton & Anderson (1983), "Neuronlike adaptive elements that can solve difficult learning control
problems"; the dynamics are Gymnasium's `CartPole-v1` (explicit Euler) at the default parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, CompiledSteps, Param
from lifelong.kernels.cartpole import Stepped, available, cartpole_call, cartpole_step

X_LIMIT = 2.4  # [m]
THETA_LIMIT = 12 * 2 * math.pi / 360  # [rad]


@dataclass(frozen=True)
class CartPoleState:
    """`physics` [B, 4]: cart position [m], cart velocity [m/s], pole angle [rad], pole angular velocity [rad/s]."""

    physics: Tensor


@dataclass(frozen=True)
class _Derived:
    """Products of task parameters that the step needs, computed once per task switch; [B] each, `tau_B1` [B, 1]."""

    push_B: Tensor  # acceleration of a push to the right
    pole_share_B: Tensor  # masspole * length / total mass
    inertia_B: Tensor  # length * 4/3
    mass_share_B: Tensor  # length * masspole / total mass
    tau_B1: Tensor


class CartPole(BatchedEnv):
    """CartPole with per-copy physics.

    Observation: [position, velocity, angle, angular velocity], float32 [B, 4]. Actions: 0 pushes left, 1 right.
    Reward 1 on every step. Terminates when |position| > 2.4 m or |angle| > 12 degrees. The offsets are those of
    continual control (Muppidi et al. 2024, section 5.2): another constant is added to what is observed in every task.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "gravity": Param(9.8, 0.0, 100.0, "gravity, m/s^2"),
        "masscart": Param(1.0, 0.01, 100.0, "mass of the cart, kg"),
        "masspole": Param(0.1, 0.001, 100.0, "mass of the pole, kg"),
        "length": Param(0.5, 0.01, 10.0, "half the length of the pole, m"),
        "force_mag": Param(10.0, -100.0, 100.0, "force of a push, N; a negative one swaps the actions"),
        "tau": Param(0.02, 0.001, 0.1, "time between two steps, s"),
        "offset_position": Param(0.0, -1e6, 1e6, "added to the position that is observed, m"),
        "offset_velocity": Param(0.0, -1e6, 1e6, "added to the velocity that is observed, m/s"),
        "offset_angle": Param(0.0, -1e6, 1e6, "added to the angle that is observed, rad"),
        "offset_spin": Param(0.0, -1e6, 1e6, "added to the angular velocity that is observed, rad/s"),
    }
    SCORE: ClassVar[tuple[float, float]] = (10.0, 500.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 500

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Four unbounded numbers (how far a step overshoots the limits depends on the parameters); two actions."""
        return Box(-np.inf, np.inf, (4,), np.float32), Discrete(2)

    def draw_state(self) -> CartPoleState:
        """All four numbers uniform in [-0.05, 0.05)."""
        return CartPoleState(self._fresh(self.num_envs))

    def _fresh(self, *copies: int) -> Tensor:
        return self.uniform(-0.05, 0.05, *copies, 4)

    def advance(self, state: CartPoleState, action: Tensor) -> tuple[CartPoleState, Tensor, Tensor, dict[str, Tensor]]:
        """One explicit Euler step."""
        derived = self._derived
        _, velocity, angle, spin = state.physics.unbind(1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        push = torch.where(action == 1, derived.push_B, -derived.push_B)
        temp = torch.addcmul(push, derived.pole_share_B * sin, spin * spin)
        spin_rate = torch.addcmul(self.params["gravity"] * sin, cos, temp, value=-1) / torch.addcmul(
            derived.inertia_B, derived.mass_share_B * cos, cos, value=-1
        )
        acceleration = torch.addcmul(temp, derived.pole_share_B * spin_rate, cos, value=-1)
        rates = torch.stack((velocity, acceleration, spin, spin_rate), 1)
        physics = torch.addcmul(state.physics, derived.tau_B1, rates)
        terminated = (physics[:, ::2].abs() > self._limits).any(1)
        return CartPoleState(physics), torch.ones_like(push), terminated, {}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step every copy (see `BatchedEnv.step`), in one compiled call where there is one."""
        if self._constants_6B is None or self.state is None:
            return super().step(actions)
        action = torch.as_tensor(actions, dtype=torch.int64, device=self.device)
        stepped = cartpole_step(
            self.state.physics,
            action,
            self.draw_state().physics,
            self.age_B,
            self.return_B,
            self.params["max_episode_steps"],
            self._constants_6B,
        )
        self.state = CartPoleState(stepped.physics_B4)
        self.age_B, self.return_B = stepped.age_B, stepped.return_B
        observed, final = stepped.physics_B4, stepped.final_B4
        if self._offset_B4 is not None:
            observed, final = observed + self._offset_B4, final + self._offset_B4
        info = {
            "final_obs": final,
            "_final_obs": stepped.done_B,
            "episode_return": stepped.final_return_B,
            "episode_length": stepped.final_age_B,
        }
        return observed, stepped.reward_B, stepped.terminated_B, stepped.truncated_B, info

    def compiled_steps(self, action_TB: Tensor) -> CompiledSteps | None:
        """T steps of the compiled call (see `BatchedEnv.compiled_steps`), on a CPU and without offsets."""
        eager = self._constants_6B is None or self.state is None or self.device.type != "cpu"
        if eager or self._offset_B4 is not None:
            return None
        assert self.state is not None and self._constants_6B is not None
        T, B = action_TB.shape
        fresh_TB4 = self._fresh(T, B)  # the numbers of T draws of B
        physics, final = torch.empty(T + 1, B, 4), torch.empty(T, B, 4)
        age, returns = torch.empty(T + 1, B, dtype=torch.int64), torch.empty(T + 1, B)
        final_age, final_return, reward = torch.empty(T, B, dtype=torch.int64), torch.empty(T, B), torch.empty(T, B)
        terminated, truncated = torch.empty(T, B, dtype=torch.bool), torch.empty(T, B, dtype=torch.bool)
        is_init = torch.empty(T + 1, B, dtype=torch.bool)
        physics[0], age[0], returns[0] = self.state.physics, self.age_B, self.return_B
        stepped = Stepped(
            physics[1:],
            final,
            age[1:],
            returns[1:],
            final_age,
            final_return,
            reward,
            terminated,
            truncated,
            is_init[1:],
        )
        limit_B = self.params["max_episode_steps"]
        call = cartpole_call(physics, action_TB, fresh_TB4, age, returns, limit_B, self._constants_6B, stepped)

        def finish() -> None:
            self.state = CartPoleState(physics[-1].clone())
            self.age_B, self.return_B = age[-1].clone(), returns[-1].clone()

        return CompiledSteps([call], physics, is_init, final, reward, terminated, truncated, final_return, finish)

    def observe(self, state: CartPoleState) -> Tensor:
        """The four numbers of the state, and the offsets."""
        return state.physics if self._offset_B4 is None else state.physics + self._offset_B4

    def set_params(self, mask: Any = None, **params: Any) -> None:
        """Write task parameters (see `BatchedEnv.set_params`)."""
        super().set_params(mask, **params)
        self._derive()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned (see `BatchedEnv.load_state_dict`)."""
        super().load_state_dict(saved)
        self._derive()

    def _derive(self) -> None:
        p = self.params
        offset_B4 = torch.stack([p[f"offset_{name}"] for name in ("position", "velocity", "angle", "spin")], 1)
        self._offset_B4 = offset_B4 if bool(offset_B4.any()) else None
        total = p["masscart"] + p["masspole"]
        self._derived = _Derived(
            push_B=p["force_mag"] / total,
            pole_share_B=p["masspole"] * p["length"] / total,
            inertia_B=p["length"] * (4.0 / 3.0),
            mass_share_B=p["length"] * p["masspole"] / total,
            tau_B1=p["tau"].unsqueeze(1),
        )
        constants = (
            self._derived.push_B,
            self._derived.pole_share_B,
            self._derived.inertia_B,
            self._derived.mass_share_B,
            p["tau"],
            p["gravity"],
        )
        self._constants_6B = torch.stack(constants) if available(p["tau"]) else None
        self._limits = torch.tensor([X_LIMIT, THETA_LIMIT], device=self.device)
