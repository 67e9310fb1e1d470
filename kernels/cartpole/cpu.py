"""Compiled (`cpu.c`)."""

from __future__ import annotations

import torch

from kernels import build
from kernels.cartpole import Stepped

_STEP = build.function("kernels.cartpole", "cartpole", "i" + "p" * 17)


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
    physics, final = torch.empty(2, B, 4).unbind(0)
    terminated, truncated, done = torch.empty(3, B, dtype=torch.bool).unbind(0)
    outputs = Stepped(
        physics,
        final,
        torch.empty_like(age_B),
        torch.empty_like(return_B),
        torch.empty_like(age_B),
        torch.empty_like(return_B),
        torch.empty_like(return_B),
        terminated,
        truncated,
        done,
    )
    _STEP[torch.float32](B, *[x.data_ptr() for x in inputs], *[x.data_ptr() for x in outputs])
    return outputs
