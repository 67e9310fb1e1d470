"""One step of CartPole with autoreset in one kernel: what `envs.control.cartpole` does in about forty torch ops."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Call, Each

_STEP = Op("cartpole_step", "lifelong.kernels.cartpole", ("cpu", "triton"), cpu_dtypes=(torch.float32,))


class Stepped(NamedTuple):
    """Outputs of a step; `physics_B4`, `age_B` and `return_B` are those after the autoreset."""

    physics_B4: torch.Tensor
    final_B4: torch.Tensor  # physics before any reset
    age_B: torch.Tensor
    return_B: torch.Tensor
    final_age_B: torch.Tensor
    final_return_B: torch.Tensor
    reward_B: torch.Tensor
    terminated_B: torch.Tensor
    truncated_B: torch.Tensor
    done_B: torch.Tensor


def available(sample: torch.Tensor) -> bool:
    """Whether there is a compiled step for tensors like `sample`: float32, with a C compiler or on CUDA with Triton."""
    return _STEP.compiled(sample)


def cartpole_step(
    physics_B4: torch.Tensor,
    action_B: torch.Tensor,
    fresh_B4: torch.Tensor,
    age_B: torch.Tensor,
    return_B: torch.Tensor,
    limit_B: torch.Tensor,
    constants_6B: torch.Tensor,
    *,
    backend: str = "auto",
) -> Stepped:
    """Step every copy; those whose episode ends continue from `fresh_B4`.

    physics_B4: cart position, velocity, pole angle, angular velocity (Barto, Sutton & Anderson 1983; explicit Euler as
    in Gymnasium). action_B: int64, 1 pushes right. age_B, limit_B: int64 steps. constants_6B: push acceleration, pole
    share, inertia, mass share, tau and gravity of every copy, float32 contiguous. Raises ValueError for a backend that
    cannot run.
    """
    stepped: Stepped = _STEP.module(backend, physics_B4).step(
        physics_B4, action_B, fresh_B4, age_B, return_B, limit_B, constants_6B
    )
    return stepped


def cartpole_call(
    physics_TB4: torch.Tensor,
    action_TB: torch.Tensor,
    fresh_TB4: torch.Tensor,
    age_TB: torch.Tensor,
    return_TB: torch.Tensor,
    limit_B: torch.Tensor,
    constants_6B: torch.Tensor,
    stepped: Stepped,
) -> Call:
    """`cartpole_step` from row t of the first tensors into row t of those of `stepped`, for `kernels.loop`.

    physics, age and return have a row more than there are steps, and `stepped` has them from the second row on.
    """
    inputs = (Each(physics_TB4), Each(action_TB), Each(fresh_TB4), Each(age_TB), Each(return_TB))
    outputs = tuple(Each(rows) for rows in stepped)
    functions = _STEP.module("cpu", physics_TB4).STEP_CALL
    return Call(functions, (physics_TB4.shape[1],), (*inputs, limit_B, constants_6B, *outputs))
