"""CartPole: keep a pole upright on a cart by pushing the cart left or right.

Source: Barto, Sutton & Anderson (1983), "Neuronlike adaptive elements that can solve difficult learning control
problems"; the dynamics are Gymnasium's `CartPole-v1` (explicit Euler) at the default parameters.
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
from lifelong.envs.render import COLOURS, GREY, INK, Canvas
from lifelong.kernels.cartpole import available, cartpole_step

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
        return CartPoleState(self.uniform(-0.05, 0.05, self.num_envs, 4))

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

    def eager_step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """See `BatchedEnv.eager_step`; in one launch on a GPU that has Triton."""
        if self._constants_6B is None or self.state is None:
            return super().eager_step(action)
        stepped = cartpole_step(
            self.state.physics,
            action.to(torch.int64),
            self.draw_state().physics,
            self.age_B,
            self.return_B,
            self.params["max_episode_steps"],
            self._constants_6B,
        )
        self.state = CartPoleState(stepped.physics_B4)
        self.age_B, self.return_B = stepped.age_B, stepped.return_B
        info = {
            "final_obs": stepped.final_B4 + self._offset_B4,
            "_final_obs": stepped.done_B,
            "episode_return": stepped.final_return_B,
            "episode_length": stepped.final_age_B,
        }
        observed = stepped.physics_B4 + self._offset_B4
        return observed, stepped.reward_B, stepped.terminated_B, stepped.truncated_B, info

    def observe(self, state: CartPoleState) -> Tensor:
        """The four numbers of the state, and the offsets."""
        return state.physics + self._offset_B4

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The cart on its track, and the pole."""
        x, _, angle, _ = (state or self.state).physics[index].tolist()
        reach = 2 * float(self.params["length"][index])
        canvas = Canvas((-3.2, 3.2), (-1.0, 2.2))
        canvas.line((-2.4, -0.3), (2.4, -0.3), colour=GREY)
        for end in (-2.4, 2.4):
            canvas.line((end, -0.45), (end, -0.15), colour=GREY)
        canvas.box(x - 0.4, -0.25, 0.8, 0.4, INK, 0.06)
        canvas.line((x, 0.1), (x + reach * math.sin(angle), 0.1 + reach * math.cos(angle)), colour=COLOURS[1], width=7)
        canvas.disc(x, 0.1, 0.07, GREY)
        return canvas.array()

    def params_changed(self) -> None:
        """What follows from the parameters."""
        p = self.params
        self._offset_B4 = torch.stack([p[f"offset_{name}"] for name in ("position", "velocity", "angle", "spin")], 1)
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
        launched = self.device.type == "cuda" and available(p["tau"])
        self._constants_6B = torch.stack(constants) if launched else None
        self._limits = torch.tensor([X_LIMIT, THETA_LIMIT], device=self.device)
