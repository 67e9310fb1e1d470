"""One step of CartPole with autoreset in one launch: what `envs.control.cartpole` does in about forty torch ops."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lifelong.kernels.dispatch import Op

_STEP = Op("cartpole_step", "lifelong.kernels.cartpole", ("triton",))


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
    """Whether there is a compiled step for tensors like `sample`: float32 on CUDA, with Triton."""
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
