"""Diagonal scan in Triton (real): a program owns one copy and a block of states and walks the steps once."""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, h0_ptr, init_ptr, h_ptr, T, B, N,
    HAS_H0: tl.constexpr, HAS_INIT: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    copy = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    h = tl.zeros([BLOCK], tl.float32)
    if HAS_H0:
        h += tl.load(h0_ptr + copy * N + n, mask, 0.0)
    for s in range(T):
        t = T - 1 - s if REVERSE else s
        row = t * B + copy
        if HAS_INIT:
            h = tl.where(tl.load(init_ptr + row) != 0, 0.0, h)
        h = tl.load(a_ptr + row * N + n, mask, 0.0) * h + tl.load(b_ptr + row * N + n, mask, 0.0)
        tl.store(h_ptr + row * N + n, h, mask)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    a_ptr, h0_ptr, init_ptr, h_ptr, dh_ptr, dfinal_ptr, da_ptr, db_ptr, dh0_ptr, T, B, N,
    HAS_H0: tl.constexpr, HAS_INIT: tl.constexpr, HAS_DH: tl.constexpr, HAS_DFINAL: tl.constexpr,
    REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    copy = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    back = -1 if REVERSE else 1
    carry = tl.zeros([BLOCK], tl.float32)
    if HAS_DFINAL:
        carry += tl.load(dfinal_ptr + copy * N + n, mask, 0.0)
    for i in range(T):
        s = T - 1 - i
        t = T - 1 - s if REVERSE else s
        row = t * B + copy
        previous = tl.zeros([BLOCK], tl.float32)
        if s > 0:
            previous += tl.load(h_ptr + (row - back * B) * N + n, mask, 0.0)
        elif HAS_H0:
            previous += tl.load(h0_ptr + copy * N + n, mask, 0.0)
        a = tl.load(a_ptr + row * N + n, mask, 0.0)
        if HAS_INIT:
            reset = tl.load(init_ptr + row) != 0
            previous, a = tl.where(reset, 0.0, previous), tl.where(reset, 0.0, a)
        if HAS_DH:
            carry += tl.load(dh_ptr + row * N + n, mask, 0.0)
        tl.store(db_ptr + row * N + n, carry, mask)
        tl.store(da_ptr + row * N + n, carry * previous, mask)
        carry = carry * a
    tl.store(dh0_ptr + copy * N + n, carry, mask)


def _block(N: int) -> int:
    return min(triton.next_power_of_2(N), 128)


def forward(
    a_TBN: torch.Tensor,
    b_TBN: torch.Tensor,
    h0_BN: torch.Tensor | None,
    is_init_TB: torch.Tensor | None,
    reverse: bool,
) -> torch.Tensor:
    """h_TBN."""
    T, B, N = a_TBN.shape
    a, b = a_TBN.contiguous(), b_TBN.contiguous()
    h = torch.empty((T, B, N), dtype=a.dtype, device=a.device)
    h0 = a if h0_BN is None else h0_BN.contiguous()
    init = a if is_init_TB is None else is_init_TB.contiguous().view(torch.uint8)
    block = _block(N)
    _forward[(B, triton.cdiv(N, block))](
        a, b, h0, init, h, T, B, N, HAS_H0=h0_BN is not None, HAS_INIT=is_init_TB is not None, REVERSE=reverse,
        BLOCK=block, num_warps=max(1, block // 64),
    )  # fmt: skip
    return h


def backward(
    a_TBN: torch.Tensor,
    h0_BN: torch.Tensor | None,
    is_init_TB: torch.Tensor | None,
    reverse: bool,
    h_TBN: torch.Tensor,
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(da_TBN, db_TBN, dh0_BN)."""
    T, B, N = h_TBN.shape
    a, da, db = a_TBN.contiguous(), torch.empty_like(h_TBN), torch.empty_like(h_TBN)
    dh0 = torch.empty((B, N), dtype=a.dtype, device=a.device)
    h0, dh, dfinal = (a if tensor is None else tensor.contiguous() for tensor in (h0_BN, dh_TBN, dfinal_BN))
    init = a if is_init_TB is None else is_init_TB.contiguous().view(torch.uint8)
    block = _block(N)
    _backward[(B, triton.cdiv(N, block))](
        a, h0, init, h_TBN, dh, dfinal, da, db, dh0, T, B, N,
        HAS_H0=h0_BN is not None, HAS_INIT=is_init_TB is not None, HAS_DH=dh_TBN is not None,
        HAS_DFINAL=dfinal_BN is not None, REVERSE=reverse, BLOCK=block, num_warps=max(1, block // 64),
    )  # fmt: skip
    return da, db, dh0
