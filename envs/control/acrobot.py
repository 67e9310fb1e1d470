"""Acrobot: swing the tip of a two-link pendulum above a line by a torque on the middle joint.

Source: Sutton (1996), "Generalization in reinforcement learning"; Sutton & Barto (2018), the "book" dynamics. They are
Gymnasium's `Acrobot-v1` (one Runge-Kutta step of order 4) at the default parameters.
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

MAX_SPIN_1 = 4 * math.pi  # [rad/s]
MAX_SPIN_2 = 9 * math.pi  # [rad/s]


@dataclass(frozen=True)
class AcrobotState:
    """`physics` [B, 4]: angles of link 1 (0 hangs down) and of link 2 relative to it [rad]; velocities [rad/s]."""

    physics: Tensor


@dataclass(frozen=True)
class _Derived:
    """Products of task parameters in the equations of motion, computed once per task switch; [B] each."""

    inertia_1: Tensor  # m1 lc1^2 + m2 (l1^2 + lc2^2) + I1 + I2
    inertia_2: Tensor  # m2 lc2^2 + I2
    coupling: Tensor  # m2 l1 lc2
    weight_1: Tensor  # (m1 lc1 + m2 l1) g
    weight_2: Tensor  # m2 lc2 g


class Acrobot(BatchedEnv):
    """Acrobot with per-copy physics.

    Observation: [cos a1, sin a1, cos a2, sin a2, velocity 1, velocity 2], float32 [B, 6]. Actions: torque -1, 0, +1
    times `torque`. Reward -1 on every step, 0 on the last. Terminates when the tip is above the line:
    -cos a1 - cos(a1 + a2) > 1 (as in Gymnasium the line is one unit up whatever the link lengths are).
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "link_length_1": Param(1.0, 0.1, 10.0, "length of link 1, m"),
        "link_mass_1": Param(1.0, 0.01, 100.0, "mass of link 1, kg"),
        "link_mass_2": Param(1.0, 0.01, 100.0, "mass of link 2, kg"),
        "link_com_1": Param(0.5, 0.01, 10.0, "centre of mass of link 1, m from its joint"),
        "link_com_2": Param(0.5, 0.01, 10.0, "centre of mass of link 2, m from its joint"),
        "link_moi": Param(1.0, 0.01, 100.0, "moment of inertia of each link, kg m^2"),
        "gravity": Param(9.8, 0.0, 100.0, "gravity, m/s^2"),
        "torque": Param(1.0, -100.0, 100.0, "torque of action 2, N m; a negative one swaps the actions"),
        "torque_noise": Param(0.0, 0.0, 100.0, "half the range of uniform noise on the torque, N m"),
        "dt": Param(0.2, 0.001, 0.5, "time between two steps, s"),
    }
    SCORE: ClassVar[tuple[float, float]] = (-500.0, -80.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 500

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Two sines and cosines and two bounded velocities; three torques."""
        high = np.array([1, 1, 1, 1, MAX_SPIN_1, MAX_SPIN_2], np.float32)
        return Box(-high, high, dtype=np.float32), Discrete(3)

    def draw_state(self) -> AcrobotState:
        """All four numbers uniform in [-0.1, 0.1)."""
        return AcrobotState(self.uniform(-0.1, 0.1, self.num_envs, 4))

    def advance(self, state: AcrobotState, action: Tensor) -> tuple[AcrobotState, Tensor, Tensor, dict[str, Tensor]]:
        """One Runge-Kutta step of order 4 with the torque held constant."""
        p = self.params
        noise = self.uniform(-1.0, 1.0, self.num_envs)
        torque = torch.addcmul((action - 1) * p["torque"], noise, p["torque_noise"])
        step = p["dt"].unsqueeze(1)
        half = step / 2
        start = state.physics
        k1 = self._rates(start, torque)
        k2 = self._rates(torch.addcmul(start, half, k1), torque)
        k3 = self._rates(torch.addcmul(start, half, k2), torque)
        k4 = self._rates(torch.addcmul(start, step, k3), torque)
        moved = torch.addcmul(start, step, k1 + 2 * (k2 + k3) + k4, value=1 / 6)
        angles = moved[:, :2]
        # Whole turns are subtracted only where there are any: angles within one turn stay exact.
        angles = angles - 2 * math.pi * torch.round(angles / (2 * math.pi))
        physics = torch.cat((angles, torch.minimum(torch.maximum(moved[:, 2:], -self._max_spin), self._max_spin)), 1)
        terminated = -torch.cos(angles[:, 0]) - torch.cos(angles[:, 0] + angles[:, 1]) > 1.0
        return AcrobotState(physics), terminated.float() - 1.0, terminated, {}

    def observe(self, state: AcrobotState) -> Tensor:
        """Cosine and sine of both angles, and both velocities."""
        angle_1, angle_2, spin_1, spin_2 = state.physics.unbind(1)
        return torch.stack((angle_1.cos(), angle_1.sin(), angle_2.cos(), angle_2.sin(), spin_1, spin_2), 1)

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The two links, and the height to reach."""
        first, second, _, _ = (state or self.state).physics[index].tolist()
        length, elbow = float(self.params["link_length_1"][index]), first + second
        canvas = Canvas((-2.4, 2.4), (-2.2, 2.2))
        canvas.line((-2.4, length), (2.4, length), colour=GREY, width=1)
        x, y = length * math.sin(first), -length * math.cos(first)
        canvas.line((0, 0), (x, y), colour=COLOURS[0], width=8)
        canvas.line((x, y), (x + math.sin(elbow), y - math.cos(elbow)), colour=COLOURS[1], width=8)
        for joint in ((0.0, 0.0), (x, y)):
            canvas.disc(*joint, 0.07, INK)
        return canvas.array()

    def params_changed(self) -> None:
        """What follows from the parameters."""
        p = self.params
        m1, m2, l1 = p["link_mass_1"], p["link_mass_2"], p["link_length_1"]
        lc1, lc2, moi, g = p["link_com_1"], p["link_com_2"], p["link_moi"], p["gravity"]
        self._derived = _Derived(
            inertia_1=m1 * lc1**2 + m2 * (l1**2 + lc2**2) + 2 * moi,
            inertia_2=m2 * lc2**2 + moi,
            coupling=m2 * l1 * lc2,
            weight_1=(m1 * lc1 + m2 * l1) * g,
            weight_2=m2 * lc2 * g,
        )
        self._max_spin = torch.tensor([MAX_SPIN_1, MAX_SPIN_2], device=self.device)

    def _rates(self, physics: Tensor, torque: Tensor) -> Tensor:
        """Time derivative of the state [B, 4] (Sutton & Barto 2018, section 11.2)."""
        d = self._derived
        angle_1, angle_2, spin_1, spin_2 = physics.unbind(1)
        coupled_cos, coupled_sin = d.coupling * torch.cos(angle_2), d.coupling * torch.sin(angle_2)
        d1 = d.inertia_1 + 2 * coupled_cos
        d2 = d.inertia_2 + coupled_cos
        phi2 = d.weight_2 * torch.sin(angle_1 + angle_2)
        phi1 = torch.addcmul(phi2, d.weight_1, torch.sin(angle_1)) - coupled_sin * spin_2 * (spin_2 + 2 * spin_1)
        ratio = d2 / d1
        spin_rate_2 = (torque + ratio * phi1 - coupled_sin * spin_1 * spin_1 - phi2) / (d.inertia_2 - ratio * d2)
        spin_rate_1 = -(d2 * spin_rate_2 + phi1) / d1
        return torch.stack((spin_1, spin_2, spin_rate_1, spin_rate_2), 1)
