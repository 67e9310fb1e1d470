"""RTRL carry with 2x2 blocks in Triton: a program owns a block of (unit, input) of one gate and copy, in both parts;
states of more than two are left to torch.

As in `kernels.rtrl`, it builds the chunk's outer products in registers from the last step to the first, so the suffix
products need no second pass, then reads S once and writes it once.
"""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lifelong.kernels.rtrl import triton_backend
from lifelong.kernels.rtrl_block import torch_backend


@triton.jit
def _jacobian(J_ptr, row, n, N, mask):  # type: ignore[no-untyped-def]
    at = J_ptr + row * 4 * N + n
    hh, hc = tl.load(at, mask, 0.0), tl.load(at + N, mask, 0.0)
    return hh, hc, tl.load(at + 2 * N, mask, 0.0), tl.load(at + 3 * N, mask, 0.0)


@triton.jit
def _advance(  # type: ignore[no-untyped-def]
    S_ptr, J_ptr, l_ptr, x_ptr, T, B, G, N, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, g = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    blocks_d = tl.cdiv(D, BLOCK_D)
    n = (tl.program_id(2) // blocks_d).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = (tl.program_id(2) % blocks_d).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_n, mask_d = n < N, d < D
    mask = mask_n[:, None] & mask_d[None, :]
    hh, hc = tl.full([BLOCK_N], 1.0, tl.float32), tl.zeros([BLOCK_N], tl.float32)
    ch, cc = tl.zeros([BLOCK_N], tl.float32), tl.full([BLOCK_N], 1.0, tl.float32)
    h, c = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i in range(T):
        row = (T - 1 - i) * B + b
        x = tl.load(x_ptr + row * D + d, mask_d, 0.0)[None, :]
        l_h = tl.load(l_ptr + (row * 2 * G + g) * N + n, mask_n, 0.0)
        l_c = tl.load(l_ptr + (row * 2 * G + G + g) * N + n, mask_n, 0.0)
        h += (hh * l_h + hc * l_c)[:, None] * x
        c += (ch * l_h + cc * l_c)[:, None] * x
        j_hh, j_hc, j_ch, j_cc = _jacobian(J_ptr, row, n, N, mask_n)
        hh, hc = hh * j_hh + hc * j_ch, hh * j_hc + hc * j_cc
        ch, cc = ch * j_hh + cc * j_ch, ch * j_hc + cc * j_cc
    at_h = S_ptr + ((b * 2 * G + g) * N + n)[:, None] * D + d[None, :]
    at_c = S_ptr + ((b * 2 * G + G + g) * N + n)[:, None] * D + d[None, :]
    S_h, S_c = tl.load(at_h, mask, 0.0).to(tl.float32), tl.load(at_c, mask, 0.0).to(tl.float32)
    h += hh[:, None] * S_h + hc[:, None] * S_c
    c += ch[:, None] * S_h + cc[:, None] * S_c
    tl.store(at_h, h.to(S_ptr.dtype.element_ty), mask)
    tl.store(at_c, c.to(S_ptr.dtype.element_ty), mask)


@triton.jit
def _advance_vector(S_ptr, J_ptr, l_ptr, T, B, K, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    b, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n = tl.program_id(2).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    at_h, at_c = (b * 2 * K + k) * N + n, (b * 2 * K + K + k) * N + n
    h, c = tl.load(S_ptr + at_h, mask, 0.0), tl.load(S_ptr + at_c, mask, 0.0)
    for t in range(T):
        row = t * B + b
        j_hh, j_hc, j_ch, j_cc = _jacobian(J_ptr, row, n, N, mask)
        l_h = tl.load(l_ptr + (row * 2 * K + k) * N + n, mask, 0.0)
        l_c = tl.load(l_ptr + (row * 2 * K + K + k) * N + n, mask, 0.0)
        h, c = j_hh * h + j_hc * c + l_h, j_ch * h + j_cc * c + l_c
    tl.store(S_ptr + at_h, h, mask)
    tl.store(S_ptr + at_c, c, mask)


def advance(S_B2GND: torch.Tensor, J_TB22N: torch.Tensor, l_TB2GN: torch.Tensor, x_TBD: torch.Tensor) -> None:
    """S <- A S + sum_t (P_t l_t) (outer) x_t."""
    B, P, G, N, D = S_B2GND.shape
    if P != 2:
        return torch_backend.advance(S_B2GND, J_TB22N, l_TB2GN, x_TBD)
    J, l, x, S = J_TB22N.contiguous(), l_TB2GN.contiguous(), x_TBD.contiguous(), S_B2GND.contiguous()  # noqa: E741
    block_n, block_d = min(triton.next_power_of_2(N), 32), min(triton.next_power_of_2(D), 32)
    grid = (B, G, triton.cdiv(N, block_n) * triton.cdiv(D, block_d))
    _advance[grid](S, J, l, x, len(x), B, G, N, D, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4)
    if S is not S_B2GND:
        S_B2GND.copy_(S)


def advance_vector(S_B2KN: torch.Tensor, J_TB22N: torch.Tensor, l_TB2KN: torch.Tensor) -> None:
    """S_t = J_t S_{t-1} + l_t."""
    B, P, K, N = S_B2KN.shape
    if P != 2:
        return torch_backend.advance_vector(S_B2KN, J_TB22N, l_TB2KN)
    J, l, S = J_TB22N.contiguous(), l_TB2KN.contiguous(), S_B2KN.contiguous()  # noqa: E741
    block = min(triton.next_power_of_2(N), 128)
    grid = (B, K, triton.cdiv(N, block))
    _advance_vector[grid](S, J, l, len(J), B, K, N, BLOCK=block, num_warps=max(1, block // 64))
    if S is not S_B2KN:
        S_B2KN.copy_(S)


def boundary(S_B2GND: torch.Tensor, boundary_B2N: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND: that of `kernels.rtrl` with a row for each copy and part of the state."""
    P = S_B2GND.shape[1]
    rows = None if index is None else (P * index[:, None] + torch.arange(P, device=index.device)).flatten()
    return triton_backend.boundary(S_B2GND.flatten(0, 1), boundary_B2N.flatten(0, 1), rows)
