"""Compiled (`cpu.c`)."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.cartpole import Stepped

_STEP = build.function("lifelong.kernels.cartpole", "cartpole", "i" + "p" * 17)

STEP_CALL = build.function("lifelong.kernels.cartpole", "cartpole_call", "pp")


def step(
    physics_B4: torch.Tensor,
    action_B: torch.Tensor,
    fresh_B4: torch.Tensor,
    age_B: torch.Tensor,
    return_B: torch.Tensor,
    limit_B: torch.Tensor,
    constants_6B: torch.Tensor,
) -> Stepped:
    """See `kernels.cartpole.cartpole_step`."""
    inputs = [x.contiguous() for x in (physics_B4, action_B, fresh_B4, age_B, return_B, limit_B, constants_6B)]
    B = physics_B4.shape[0]
    outputs = Stepped(
        torch.empty(B, 4),
        torch.empty(B, 4),
        torch.empty_like(age_B),
        torch.empty_like(return_B),
        torch.empty_like(age_B),
        torch.empty_like(return_B),
        torch.empty_like(return_B),
        torch.empty(B, dtype=torch.bool),
        torch.empty(B, dtype=torch.bool),
        torch.empty(B, dtype=torch.bool),
    )
    _STEP[torch.float32](B, *[x.data_ptr() for x in inputs], *[x.data_ptr() for x in outputs])
    return outputs
