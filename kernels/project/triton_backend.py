"""Projection of an update in Triton: a program owns some rows of the update and removes the basis from them in place.

The basis comes in blocks of columns; as they are orthonormal, removing one block after the other is removing all, as in
modified Gram-Schmidt. The left side is the same kernel on the transposed update, which costs nothing but other strides.
"""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROWS, _COLUMNS, _BASIS = 16, 64, 64


@triton.jit
def _project(  # type: ignore[no-untyped-def]
    u_ptr, basis_ptr, M, N, K, row_stride, column_stride, basis_row_stride, basis_column_stride,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows = u_ptr + m[:, None] * row_stride
    for first in range(0, K, BLOCK_K):
        k = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        coefficient = tl.zeros([ROWS, BLOCK_K], tl.float32)
        for start in range(0, N, BLOCK_N):
            n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
            u = tl.load(rows + n[None, :] * column_stride, (m < M)[:, None] & (n < N)[None, :], 0.0)
            at = basis_ptr + n[:, None] * basis_row_stride + k[None, :] * basis_column_stride
            basis = tl.load(at, (n < N)[:, None] & (k < K)[None, :], 0.0)
            coefficient = tl.dot(u, basis, coefficient, input_precision="tf32x3")
        for start in range(0, N, BLOCK_N):
            n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
            at_u, inside = rows + n[None, :] * column_stride, (m < M)[:, None] & (n < N)[None, :]
            at = basis_ptr + n[None, :] * basis_row_stride + k[:, None] * basis_column_stride
            basis = tl.load(at, (n < N)[None, :] & (k < K)[:, None], 0.0)
            along = tl.dot(coefficient, basis, input_precision="tf32x3")
            tl.store(at_u, tl.load(at_u, inside, 0.0) - along, inside)
        tl.debug_barrier()  # the next block of the basis reads what was written here


def _remove(update_MN: torch.Tensor, basis_NK: torch.Tensor) -> None:
    """U <- U - (U M) M^T in place."""
    (M, N), K = update_MN.shape, basis_NK.shape[1]
    _project[(triton.cdiv(M, _ROWS),)](
        update_MN, basis_NK, M, N, K, *update_MN.stride(), *basis_NK.stride(),
        ROWS=_ROWS, BLOCK_N=_COLUMNS, BLOCK_K=_BASIS, num_warps=4,
    )  # fmt: skip


def project(update_MN: torch.Tensor, basis_NK: torch.Tensor, left_basis_MJ: torch.Tensor | None) -> None:
    """U <- U - (U M) M^T, then U <- U - L (L^T U)."""
    _remove(update_MN, basis_NK)
    if left_basis_MJ is not None:
        _remove(update_MN.t(), left_basis_MJ)
