"""CartPole's step in Triton: a program owns a block of copies; every number is read once and written once."""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lifelong.kernels.cartpole import Stepped

_BLOCK = 128
#: pi/2 in three parts, of which the first two have so few digits that a product with a small integer is exact
_PI_2_A, _PI_2_B, _PI_2_C = tl.constexpr(1.5703125), tl.constexpr(4.83751296997e-4), tl.constexpr(7.54978995489e-8)


@triton.jit
def _sine_and_cosine(x):  # type: ignore[no-untyped-def]
    """(sin x, cos x) within 1e-7 for |x| up to some thousand; the device's own fast ones are several times as far off.
    x = quarter * pi/2 + r with |r| <= pi/4, and the power series of both at r."""
    quarter = tl.floor(x * 0.63661977236758134308 + 0.5)
    r = ((x - quarter * _PI_2_A) - quarter * _PI_2_B) - quarter * _PI_2_C
    s = r * r
    sine = r + r * s * (-1.6666666e-1 + s * (8.3333310e-3 + s * (-1.9840874e-4 + s * 2.7525562e-6)))
    cosine = 1.0 - 0.5 * s + s * s * (4.1666666e-2 + s * (-1.3888887e-3 + s * (2.4801587e-5 - s * 2.7557319e-7)))
    turn = quarter.to(tl.int32) & 3
    swapped = (turn & 1) == 1
    first, second = tl.where(swapped, cosine, sine), tl.where(swapped, sine, cosine)
    return tl.where(turn >= 2, -first, first), tl.where((turn == 1) | (turn == 2), -second, second)


@triton.jit
def _step(  # type: ignore[no-untyped-def]
    physics_ptr, action_ptr, fresh_ptr, age_ptr, return_ptr, limit_ptr, constants_ptr, next_ptr, final_ptr,
    next_age_ptr, next_return_ptr, final_age_ptr, final_return_ptr, reward_ptr, terminated_ptr, truncated_ptr, done_ptr,
    B, X_LIMIT: tl.constexpr, THETA_LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = b < B
    x, velocity = tl.load(physics_ptr + 4 * b, mask, 0.0), tl.load(physics_ptr + 4 * b + 1, mask, 0.0)
    angle, spin = tl.load(physics_ptr + 4 * b + 2, mask, 0.0), tl.load(physics_ptr + 4 * b + 3, mask, 0.0)
    push = tl.load(constants_ptr + b, mask, 0.0)
    pole_share, inertia = tl.load(constants_ptr + B + b, mask, 0.0), tl.load(constants_ptr + 2 * B + b, mask, 1.0)
    mass_share, tau = tl.load(constants_ptr + 3 * B + b, mask, 0.0), tl.load(constants_ptr + 4 * B + b, mask, 0.0)
    gravity = tl.load(constants_ptr + 5 * B + b, mask, 0.0)
    sine, cosine = _sine_and_cosine(angle)
    force = tl.where(tl.load(action_ptr + b, mask, 0) == 1, push, -push)
    temp = force + pole_share * sine * (spin * spin)
    spin_rate = (gravity * sine - cosine * temp) / (inertia - mass_share * cosine * cosine)
    acceleration = temp - pole_share * spin_rate * cosine
    x, velocity, angle, spin = (
        x + tau * velocity,
        velocity + tau * acceleration,
        angle + tau * spin,
        spin + tau * spin_rate,
    )
    age, total = tl.load(age_ptr + b, mask, 0) + 1, tl.load(return_ptr + b, mask, 0.0) + 1.0
    limit = tl.load(limit_ptr + b, mask, 0)
    fell = (tl.abs(x) > X_LIMIT) | (tl.abs(angle) > THETA_LIMIT)
    late = (limit > 0) & (age >= limit)
    over = fell | late
    tl.store(final_ptr + 4 * b, x, mask)
    tl.store(final_ptr + 4 * b + 1, velocity, mask)
    tl.store(final_ptr + 4 * b + 2, angle, mask)
    tl.store(final_ptr + 4 * b + 3, spin, mask)
    tl.store(next_ptr + 4 * b, tl.where(over, tl.load(fresh_ptr + 4 * b, mask, 0.0), x), mask)
    tl.store(next_ptr + 4 * b + 1, tl.where(over, tl.load(fresh_ptr + 4 * b + 1, mask, 0.0), velocity), mask)
    tl.store(next_ptr + 4 * b + 2, tl.where(over, tl.load(fresh_ptr + 4 * b + 2, mask, 0.0), angle), mask)
    tl.store(next_ptr + 4 * b + 3, tl.where(over, tl.load(fresh_ptr + 4 * b + 3, mask, 0.0), spin), mask)
    tl.store(final_age_ptr + b, age, mask)
    tl.store(final_return_ptr + b, total, mask)
    tl.store(next_age_ptr + b, tl.where(over, 0, age), mask)
    tl.store(next_return_ptr + b, tl.where(over, 0.0, total), mask)
    tl.store(reward_ptr + b, 1.0, mask)
    tl.store(terminated_ptr + b, fell.to(tl.uint8), mask)
    tl.store(truncated_ptr + b, late.to(tl.uint8), mask)
    tl.store(done_ptr + b, over.to(tl.uint8), mask)


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
    physics, _, _, age, returns, _, _ = inputs
    done, terminated, truncated = (torch.empty_like(age, dtype=torch.bool) for _ in range(3))
    outputs = Stepped(
        torch.empty_like(physics),
        torch.empty_like(physics),
        torch.empty_like(age),
        torch.empty_like(returns),
        torch.empty_like(age),
        torch.empty_like(returns),
        torch.empty_like(returns),
        terminated,
        truncated,
        done,
    )
    bytes_ = [x.view(torch.uint8) if x.dtype == torch.bool else x for x in outputs]
    B = len(age)
    _step[(triton.cdiv(B, _BLOCK),)](
        *inputs, *bytes_, B, X_LIMIT=2.4, THETA_LIMIT=12 * 2 * 3.141592653589793 / 360, BLOCK=_BLOCK, num_warps=4
    )
    return outputs
