"""Diagonal GRU in Triton: a program owns one copy and a block of units and walks the steps with h in registers."""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _gates(u_ptr, row, n, N, mask, v_z, v_r, v_c, h):  # type: ignore[no-untyped-def]
    """(z, r, c) of one copy and step; row is t * B + b."""
    z = tl.sigmoid(tl.load(u_ptr + row * 3 * N + n, mask, 0.0) + v_z * h)
    r = tl.sigmoid(tl.load(u_ptr + row * 3 * N + N + n, mask, 0.0) + v_r * h)
    c = 2.0 * tl.sigmoid(2.0 * (tl.load(u_ptr + row * 3 * N + 2 * N + n, mask, 0.0) + v_c * (h * r))) - 1.0
    return z, r, c


@triton.jit
def _weights(v_ptr, n, N, mask):  # type: ignore[no-untyped-def]
    v_z, v_r = tl.load(v_ptr + n, mask, 0.0), tl.load(v_ptr + N + n, mask, 0.0)
    return v_z, v_r, tl.load(v_ptr + 2 * N + n, mask, 0.0)


@triton.jit
def _forward(u_ptr, v_ptr, h0_ptr, init_ptr, h_ptr, T, B, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    v_z, v_r, v_c = _weights(v_ptr, n, N, mask)
    h = tl.load(h0_ptr + b * N + n, mask, 0.0)
    for t in range(T):
        row = t * B + b
        h = tl.where(tl.load(init_ptr + row) != 0, 0.0, h)
        z, _, c = _gates(u_ptr, row, n, N, mask, v_z, v_r, v_c, h)
        h = h + z * (c - h)
        tl.store(h_ptr + row * N + n, h, mask)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    u_ptr, v_ptr, h0_ptr, init_ptr, h_ptr, dh_ptr, dfinal_ptr, du_ptr, dv_ptr, dh0_ptr,
    T, B, N, HAS_DH: tl.constexpr, HAS_DFINAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    v_z, v_r, v_c = _weights(v_ptr, n, N, mask)
    carry = tl.zeros([BLOCK], tl.float32)
    if HAS_DFINAL:
        carry += tl.load(dfinal_ptr + b * N + n, mask, 0.0)
    dv_z, dv_r, dv_c = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i in range(T):
        t = T - 1 - i
        row = t * B + b
        if t == 0:
            h = tl.load(h0_ptr + b * N + n, mask, 0.0)
        else:
            h = tl.load(h_ptr + (row - B) * N + n, mask, 0.0)
        reset = tl.load(init_ptr + row) != 0
        h = tl.where(reset, 0.0, h)
        z, r, c = _gates(u_ptr, row, n, N, mask, v_z, v_r, v_c, h)
        if HAS_DH:
            carry += tl.load(dh_ptr + row * N + n, mask, 0.0)
        dz = carry * (c - h) * z * (1.0 - z)
        dc = carry * z * (1.0 - c * c)
        dr = dc * v_c * h * r * (1.0 - r)
        tl.store(du_ptr + row * 3 * N + n, dz, mask)
        tl.store(du_ptr + row * 3 * N + N + n, dr, mask)
        tl.store(du_ptr + row * 3 * N + 2 * N + n, dc, mask)
        dv_z += dz * h
        dv_r += dr * h
        dv_c += dc * h * r
        carry = tl.where(reset, 0.0, carry * (1.0 - z) + dz * v_z + dr * v_r + dc * v_c * r)
    tl.store(dv_ptr + b * 3 * N + n, dv_z, mask)
    tl.store(dv_ptr + b * 3 * N + N + n, dv_r, mask)
    tl.store(dv_ptr + b * 3 * N + 2 * N + n, dv_c, mask)
    tl.store(dh0_ptr + b * N + n, carry, mask)


@triton.jit
def _local(u_ptr, v_ptr, h_ptr, init_ptr, a_ptr, l_ptr, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    v_z, v_r, v_c = _weights(v_ptr, n, N, mask)
    reset = tl.load(init_ptr + row) != 0
    h = tl.where(reset, 0.0, tl.load(h_ptr + row * N + n, mask, 0.0))
    z, r, c = _gates(u_ptr, row, n, N, mask, v_z, v_r, v_c, h)
    l_z = (c - h) * z * (1.0 - z)
    l_c = z * (1.0 - c * c)
    l_r = l_c * v_c * h * r * (1.0 - r)
    tl.store(l_ptr + row * 3 * N + n, l_z, mask)
    tl.store(l_ptr + row * 3 * N + N + n, l_r, mask)
    tl.store(l_ptr + row * 3 * N + 2 * N + n, l_c, mask)
    tl.store(a_ptr + row * N + n, tl.where(reset, 0.0, 1.0 - z + l_z * v_z + l_r * v_r + l_c * v_c * r), mask)


def _block(N: int) -> int:
    return min(triton.next_power_of_2(N), 128)


def forward(u_TB3N: torch.Tensor, v_3N: torch.Tensor, h0_BN: torch.Tensor, is_init_TB: torch.Tensor) -> torch.Tensor:
    """h_TBN."""
    T, B, N = u_TB3N.shape[0], *h0_BN.shape
    u, v, h0, init = u_TB3N.contiguous(), v_3N.contiguous(), h0_BN.contiguous(), is_init_TB.contiguous()
    h = torch.empty((T, B, N), dtype=u.dtype, device=u.device)
    block = _block(N)
    grid = (B, triton.cdiv(N, block))
    _forward[grid](u, v, h0, init.view(torch.uint8), h, T, B, N, BLOCK=block, num_warps=max(1, block // 64))
    return h


def backward(
    u_TB3N: torch.Tensor,
    v_3N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    h_TBN: torch.Tensor,
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dv_3N, dh0_BN). dv is summed over copies in a fixed order, without atomics."""
    T, B, N = h_TBN.shape
    u, v, h0, init = u_TB3N.contiguous(), v_3N.contiguous(), h0_BN.contiguous(), is_init_TB.contiguous()
    dh, dfinal = (h_TBN if tensor is None else tensor.contiguous() for tensor in (dh_TBN, dfinal_BN))
    du, dh0 = torch.empty_like(u), torch.empty_like(h0)
    dv = torch.empty((B, 3 * N), dtype=u.dtype, device=u.device)
    block = _block(N)
    _backward[(B, triton.cdiv(N, block))](
        u, v, h0, init.view(torch.uint8), h_TBN, dh, dfinal, du, dv, dh0, T, B, N,
        HAS_DH=dh_TBN is not None, HAS_DFINAL=dfinal_BN is not None, BLOCK=block, num_warps=max(1, block // 64),
    )  # fmt: skip
    return du, dv.sum(0), dh0


def local(
    u_TB3N: torch.Tensor, v_3N: torch.Tensor, h_prev_TBN: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a_TBN, l_TB3N)."""
    T, B, N = h_prev_TBN.shape
    u, v, h, init = u_TB3N.contiguous(), v_3N.contiguous(), h_prev_TBN.contiguous(), is_init_TB.contiguous()
    a, l = torch.empty_like(h), torch.empty_like(u)  # noqa: E741
    block = _block(N)
    grid = (T * B, triton.cdiv(N, block))
    _local[grid](u, v, h, init.view(torch.uint8), a, l, N, BLOCK=block, num_warps=max(1, block // 64))
    return a, l
