"""RTRL carry in Triton: a program owns a block of (state, input) of one gate and walks a group of copies.

For each copy it builds the chunk's outer products in registers from the last step to the first, so the suffix product
needs no second pass, then reads S once, takes the boundary gradient and writes S once.
"""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl

_PROGRAMS = 2048  # wanted at least, by splitting the copies into groups


@triton.jit
def _advance(  # type: ignore[no-untyped-def]
    S_ptr, out_ptr, a_ptr, l_ptr, x_ptr, boundary_ptr, grad_ptr, T, B, G, N, D, group,
    HAS_BOUNDARY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks_d = tl.cdiv(D, BLOCK_D)
    n = (tl.program_id(0) // blocks_d).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = (tl.program_id(0) % blocks_d).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    g, part = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    mask_n, mask_d = n < N, d < D
    mask = mask_n[:, None] & mask_d[None, :]
    grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for b in range(part * group, tl.minimum(part * group + group, B)):
        P = tl.full([BLOCK_N], 1.0, tl.float32)
        total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for i in range(T):
            row = (T - 1 - i) * B + b
            weight = P * tl.load(l_ptr + (row * G + g) * N + n, mask_n, 0.0)
            total += weight[:, None] * tl.load(x_ptr + row * D + d, mask_d, 0.0)[None, :]
            P *= tl.load(a_ptr + row * N + n, mask_n, 0.0)
        at = ((b * G + g) * N + n)[:, None] * D + d[None, :]
        S = tl.load(S_ptr + at, mask, 0.0).to(tl.float32)
        if HAS_BOUNDARY:
            grad += tl.load(boundary_ptr + b * N + n, mask_n, 0.0)[:, None] * S
        tl.store(out_ptr + at, (P[:, None] * S + total).to(out_ptr.dtype.element_ty), mask)
    if HAS_BOUNDARY:
        tl.store(grad_ptr + ((part * G + g) * N + n)[:, None] * D + d[None, :], grad, mask)


@triton.jit
def _boundary(  # type: ignore[no-untyped-def]
    S_ptr, boundary_ptr, index_ptr, grad_ptr, count, G, N, D, group,
    HAS_INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks_d = tl.cdiv(D, BLOCK_D)
    n = (tl.program_id(0) // blocks_d).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = (tl.program_id(0) % blocks_d).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    g, part = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    mask_n = n < N
    mask = mask_n[:, None] & (d < D)[None, :]
    grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i in range(part * group, tl.minimum(part * group + group, count)):
        b = i
        if HAS_INDEX:
            b = tl.load(index_ptr + i)
        S = tl.load(S_ptr + ((b * G + g) * N + n)[:, None] * D + d[None, :], mask, 0.0).to(tl.float32)
        grad += tl.load(boundary_ptr + i * N + n, mask_n, 0.0)[:, None] * S
    tl.store(grad_ptr + ((part * G + g) * N + n)[:, None] * D + d[None, :], grad, mask)


@triton.jit
def _advance_vector(S_ptr, out_ptr, a_ptr, l_ptr, T, B, K, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    b, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n = tl.program_id(2).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    S = tl.load(S_ptr + (b * K + k) * N + n, mask, 0.0)
    for t in range(T):
        row = t * B + b
        S = tl.load(a_ptr + row * N + n, mask, 0.0) * S + tl.load(l_ptr + (row * K + k) * N + n, mask, 0.0)
    tl.store(out_ptr + (b * K + k) * N + n, S, mask)


def _blocks(N: int, D: int) -> tuple[int, int]:
    return min(triton.next_power_of_2(N), 32), min(triton.next_power_of_2(D), 64)


def _grid(copies: int, G: int, N: int, D: int) -> tuple[tuple[int, int, int], int]:
    """The launch grid and the copies per group; the same for the same shapes, so sums have a fixed order."""
    block_n, block_d = _blocks(N, D)
    pieces = triton.cdiv(N, block_n) * triton.cdiv(D, block_d)
    group = triton.cdiv(max(copies, 1), min(max(copies, 1), triton.cdiv(_PROGRAMS, pieces * G)))
    return (pieces, G, triton.cdiv(max(copies, 1), group)), group


def advance(
    S_BGND: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBGN: torch.Tensor,
    x_TBD: torch.Tensor,
    boundary_BN: torch.Tensor | None,
    out_BGND: torch.Tensor,
) -> torch.Tensor | None:
    """Writes the carry after the chunk to `out`; returns grad_GND if a boundary is given."""
    B, G, N, D = S_BGND.shape
    a, l, x, S = a_TBN.contiguous(), l_TBGN.contiguous(), x_TBD.contiguous(), S_BGND.contiguous()  # noqa: E741
    out = out_BGND if out_BGND.is_contiguous() else torch.empty(S.shape, dtype=S.dtype, device=S.device)
    boundary = a if boundary_BN is None else boundary_BN.contiguous()
    block_n, block_d = _blocks(N, D)
    grid, group = _grid(B, G, N, D)
    partial = a if boundary_BN is None else torch.empty((grid[2], G, N, D), dtype=a.dtype, device=a.device)
    _advance[grid](
        S, out, a, l, x, boundary, partial, a.shape[0], B, G, N, D, group,
        HAS_BOUNDARY=boundary_BN is not None, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip
    if out is not out_BGND:
        out_BGND.copy_(out)
    return None if boundary_BN is None else partial.sum(0)


def advance_vector(
    S_BKN: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBKN: torch.Tensor,
    boundary_BN: torch.Tensor | None,
    out_BKN: torch.Tensor,
) -> torch.Tensor | None:
    """Writes the carry after the chunk to `out`; returns grad_KN if a boundary is given."""
    B, K, N = S_BKN.shape
    grad = None if boundary_BN is None else (boundary_BN[:, None] * S_BKN).sum(0)
    a, l, S = a_TBN.contiguous(), l_TBKN.contiguous(), S_BKN.contiguous()  # noqa: E741
    out = out_BKN if out_BKN.is_contiguous() else torch.empty_like(S)
    block = min(triton.next_power_of_2(N), 128)
    grid = (B, K, triton.cdiv(N, block))
    _advance_vector[grid](S, out, a, l, a.shape[0], B, K, N, BLOCK=block, num_warps=max(1, block // 64))
    if out is not out_BKN:
        out_BKN.copy_(out)
    return grad


def boundary(S_BGND: torch.Tensor, boundary_BN: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND, reading S once; with an index only the named copies."""
    _, G, N, D = S_BGND.shape
    S, rows = S_BGND.contiguous(), boundary_BN.contiguous()
    block_n, block_d = _blocks(N, D)
    grid, group = _grid(len(rows), G, N, D)
    partial = torch.empty((grid[2], G, N, D), dtype=rows.dtype, device=rows.device)
    _boundary[grid](
        S, rows, rows if index is None else index.contiguous(), partial, len(rows), G, N, D, group,
        HAS_INDEX=index is not None, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip
    return partial.sum(0)
