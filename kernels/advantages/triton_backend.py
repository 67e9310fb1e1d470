"""GAE and V-trace in Triton: a program owns a block of copies and walks the steps backwards once."""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 128


@triton.jit
def _next_value(  # type: ignore[no-untyped-def]
    t, T, at, b, B, mask, value_ptr, bootstrap_ptr, terminated_ptr, truncated_ptr, final_ptr
):
    """(value after the step, 1 unless the episode ends with it)."""
    if t == T - 1:
        following = tl.load(bootstrap_ptr + b, mask, 0.0)
    else:
        following = tl.load(value_ptr + at + B, mask, 0.0)
    terminated = tl.load(terminated_ptr + at, mask, 0) != 0
    truncated = tl.load(truncated_ptr + at, mask, 0) != 0
    after = tl.where(truncated, tl.load(final_ptr + at, mask, 0.0), following)
    return tl.where(terminated, 0.0, after), tl.where(terminated | truncated, 0.0, 1.0)


@triton.jit
def _gae(  # type: ignore[no-untyped-def]
    reward_ptr, value_ptr, bootstrap_ptr, terminated_ptr, truncated_ptr, final_ptr, advantage_ptr, return_ptr,
    T, B, gamma, lam, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = b < B
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(T):
        t = T - 1 - i
        at = t * B + b
        after, keep = _next_value(
            t, T, at, b, B, mask, value_ptr, bootstrap_ptr, terminated_ptr, truncated_ptr, final_ptr
        )
        value = tl.load(value_ptr + at, mask, 0.0)
        total = tl.load(reward_ptr + at, mask, 0.0) + gamma * after - value + gamma * lam * keep * total
        tl.store(advantage_ptr + at, total, mask)
        tl.store(return_ptr + at, total + value, mask)


@triton.jit
def _vtrace(  # type: ignore[no-untyped-def]
    ratio_ptr, reward_ptr, value_ptr, bootstrap_ptr, terminated_ptr, truncated_ptr, final_ptr, target_ptr,
    advantage_ptr, T, B, gamma, lam, rho_bar, c_bar, mix, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = b < B
    excess = tl.zeros([BLOCK], tl.float32)
    for i in range(T):
        t = T - 1 - i
        at = t * B + b
        next_value, keep = _next_value(
            t, T, at, b, B, mask, value_ptr, bootstrap_ptr, terminated_ptr, truncated_ptr, final_ptr
        )
        value = tl.load(value_ptr + at, mask, 0.0)
        ratio = tl.exp(tl.load(ratio_ptr + at, mask, 0.0))
        rho, c = tl.minimum(ratio, rho_bar), lam * tl.minimum(ratio, c_bar)
        base = tl.load(reward_ptr + at, mask, 0.0) + gamma * next_value - value
        after = keep * excess
        tl.store(advantage_ptr + at, rho * (base + gamma * mix * after), mask)
        excess = rho * base + gamma * c * after
        tl.store(target_ptr + at, excess + value, mask)


def _dense(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    dense = [tensor.contiguous() for tensor in tensors]
    return [tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor for tensor in dense]


def gae(tensors: tuple[torch.Tensor, ...], gamma: float, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantage_TB, return_TB) of (reward, value, bootstrap, terminated, truncated, final_value)."""
    inputs = _dense(tensors)
    T, B = inputs[0].shape
    advantage, returns = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    _gae[(triton.cdiv(B, _BLOCK),)](*inputs, advantage, returns, T, B, gamma, lam, BLOCK=_BLOCK, num_warps=1)
    return advantage, returns


def vtrace(
    tensors: tuple[torch.Tensor, ...], gamma: float, lam: float, rho_bar: float, c_bar: float, mix: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(vs_TB, advantage_TB) of (log_ratio, reward, value, bootstrap, terminated, truncated, final_value)."""
    inputs = _dense(tensors)
    T, B = inputs[0].shape
    target, advantage = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    _vtrace[(triton.cdiv(B, _BLOCK),)](
        *inputs, target, advantage, T, B, gamma, lam, rho_bar, c_bar, mix, BLOCK=_BLOCK, num_warps=1
    )
    return target, advantage
