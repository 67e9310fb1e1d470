"""eLSTM in Triton: a program owns one copy and a block of states and walks the steps with the state in registers."""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lifelong.kernels.elstm.torch_backend import gate, gate_backward

__all__ = ["backward", "forward", "gate", "gate_backward", "local", "step"]


@triton.jit
def _gates(u_ptr, row, n, N, mask, v_f, v_z, c):  # type: ignore[no-untyped-def]
    """(f, z) of one copy and step; row is t * B + b."""
    f = tl.sigmoid(tl.load(u_ptr + row * 2 * N + n, mask, 0.0) + v_f * c)
    z = 2.0 * tl.sigmoid(2.0 * (tl.load(u_ptr + row * 2 * N + N + n, mask, 0.0) + v_z * c)) - 1.0
    return f, z


@triton.jit
def _forward(u_ptr, v_ptr, c0_ptr, init_ptr, c_ptr, T, B, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    v_f, v_z = tl.load(v_ptr + n, mask, 0.0), tl.load(v_ptr + N + n, mask, 0.0)
    c = tl.load(c0_ptr + b * N + n, mask, 0.0)
    for t in range(T):
        row = t * B + b
        c = tl.where(tl.load(init_ptr + row) != 0, 0.0, c)
        f, z = _gates(u_ptr, row, n, N, mask, v_f, v_z, c)
        c = z + f * (c - z)
        tl.store(c_ptr + row * N + n, c, mask)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    u_ptr, v_ptr, c0_ptr, init_ptr, c_ptr, dc_ptr, dfinal_ptr, du_ptr, dv_ptr, dc0_ptr,
    T, B, N, HAS_DC: tl.constexpr, HAS_DFINAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    v_f, v_z = tl.load(v_ptr + n, mask, 0.0), tl.load(v_ptr + N + n, mask, 0.0)
    carry = tl.zeros([BLOCK], tl.float32)
    if HAS_DFINAL:
        carry += tl.load(dfinal_ptr + b * N + n, mask, 0.0)
    dv_f, dv_z = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i in range(T):
        t = T - 1 - i
        row = t * B + b
        if t == 0:
            c = tl.load(c0_ptr + b * N + n, mask, 0.0)
        else:
            c = tl.load(c_ptr + (row - B) * N + n, mask, 0.0)
        reset = tl.load(init_ptr + row) != 0
        c = tl.where(reset, 0.0, c)
        f, z = _gates(u_ptr, row, n, N, mask, v_f, v_z, c)
        if HAS_DC:
            carry += tl.load(dc_ptr + row * N + n, mask, 0.0)
        df = carry * (c - z) * f * (1.0 - f)
        dz = carry * (1.0 - f) * (1.0 - z * z)
        tl.store(du_ptr + row * 2 * N + n, df, mask)
        tl.store(du_ptr + row * 2 * N + N + n, dz, mask)
        dv_f += df * c
        dv_z += dz * c
        carry = tl.where(reset, 0.0, carry * f + v_f * df + v_z * dz)
    tl.store(dv_ptr + b * 2 * N + n, dv_f, mask)
    tl.store(dv_ptr + b * 2 * N + N + n, dv_z, mask)
    tl.store(dc0_ptr + b * N + n, carry, mask)


@triton.jit
def _local(u_ptr, v_ptr, c_ptr, init_ptr, a_ptr, l_ptr, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    v_f, v_z = tl.load(v_ptr + n, mask, 0.0), tl.load(v_ptr + N + n, mask, 0.0)
    reset = tl.load(init_ptr + row) != 0
    c = tl.where(reset, 0.0, tl.load(c_ptr + row * N + n, mask, 0.0))
    f, z = _gates(u_ptr, row, n, N, mask, v_f, v_z, c)
    f_hat = (c - z) * f * (1.0 - f)
    z_hat = (1.0 - f) * (1.0 - z * z)
    tl.store(l_ptr + row * 2 * N + n, f_hat, mask)
    tl.store(l_ptr + row * 2 * N + N + n, z_hat, mask)
    tl.store(a_ptr + row * N + n, tl.where(reset, 0.0, f + v_f * f_hat + v_z * z_hat), mask)


def _block(N: int) -> int:
    return min(triton.next_power_of_2(N), 128)


def forward(u_TB2N: torch.Tensor, v_2N: torch.Tensor, c0_BN: torch.Tensor, is_init_TB: torch.Tensor) -> torch.Tensor:
    """c_TBN."""
    T, B, N = u_TB2N.shape[0], *c0_BN.shape
    u, v, c0, init = u_TB2N.contiguous(), v_2N.contiguous(), c0_BN.contiguous(), is_init_TB.contiguous()
    c = torch.empty((T, B, N), dtype=u.dtype, device=u.device)
    block = _block(N)
    grid = (B, triton.cdiv(N, block))
    _forward[grid](u, v, c0, init.view(torch.uint8), c, T, B, N, BLOCK=block, num_warps=max(1, block // 64))
    return c


def step(u_B2N: torch.Tensor, v_2N: torch.Tensor, c_BN: torch.Tensor, is_init_B: torch.Tensor) -> torch.Tensor:
    """c_BN after one step; no gradient."""
    return forward(u_B2N[None], v_2N, c_BN, is_init_B[None])[0]


def backward(
    u_TB2N: torch.Tensor,
    v_2N: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    c_TBN: torch.Tensor,
    dc_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB2N, dv_2N, dc0_BN). dv is summed over copies in a fixed order, without atomics."""
    T, B, N = c_TBN.shape
    u, v, c0, init = u_TB2N.contiguous(), v_2N.contiguous(), c0_BN.contiguous(), is_init_TB.contiguous()
    dc = c_TBN if dc_TBN is None else dc_TBN.contiguous()
    dfinal = c0 if dfinal_BN is None else dfinal_BN.contiguous()
    du, dc0 = torch.empty_like(u), torch.empty_like(c0)
    dv = torch.empty((B, 2 * N), dtype=u.dtype, device=u.device)
    block = _block(N)
    _backward[(B, triton.cdiv(N, block))](
        u, v, c0, init.view(torch.uint8), c_TBN, dc, dfinal, du, dv, dc0, T, B, N,
        HAS_DC=dc_TBN is not None, HAS_DFINAL=dfinal_BN is not None, BLOCK=block, num_warps=max(1, block // 64),
    )  # fmt: skip
    return du, dv.sum(0), dc0


def local(
    u_TB2N: torch.Tensor, v_2N: torch.Tensor, c_prev_TBN: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a_TBN, l_TB2N)."""
    T, B, N = c_prev_TBN.shape
    u, v, c, init = u_TB2N.contiguous(), v_2N.contiguous(), c_prev_TBN.contiguous(), is_init_TB.contiguous()
    a, l = torch.empty_like(c), torch.empty_like(u)  # noqa: E741
    block = _block(N)
    grid = (T * B, triton.cdiv(N, block))
    _local[grid](u, v, c, init.view(torch.uint8), a, l, N, BLOCK=block, num_warps=max(1, block // 64))
    return a, l
