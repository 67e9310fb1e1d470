"""RTRL carry with 2x2 blocks in torch operations: suffix products, then one batched matmul for all gates."""

from __future__ import annotations

import torch

from lifelong.kernels.rtrl import torch_backend
from lifelong.kernels.rtrl_block.reference import advance_vector

__all__ = ["advance", "advance_vector", "boundary"]

# Bytes of compute-precision copies of S that may exist at a time.
_SLICE_BYTES = 1 << 26


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[B, 2, 2, N] times [B, 2, M, ...], unit by unit; written out, as N lies inside the matrices."""
    extra = (1,) * (right.ndim - 4)
    left = left.reshape(*left.shape, *extra)
    return left[:, :, 0, None] * right[:, 0, None] + left[:, :, 1, None] * right[:, 1, None]


def advance(S_B2GND: torch.Tensor, J_TB22N: torch.Tensor, l_TB2GN: torch.Tensor, x_TBD: torch.Tensor) -> None:
    """S <- A S + sum_t (P_t l_t) (outer) x_t."""
    B, _, G, N, D = S_B2GND.shape
    P_B22N = torch.eye(2, dtype=x_TBD.dtype, device=x_TBD.device)[:, :, None].expand(B, 2, 2, N)
    weights: list[torch.Tensor] = []
    for J_B22N, l_B2GN in zip(J_TB22N.flip(0), l_TB2GN.flip(0), strict=True):
        weights.append(_product(P_B22N, l_B2GN).flatten(1))
        P_B22N = _product(P_B22N, J_B22N)
    weights_BMT, x_BTD = torch.stack(weights[::-1], dim=2), x_TBD.transpose(0, 1)
    copies = max(1, _SLICE_BYTES // (8 * G * N * D))
    for first in range(0, B, copies):
        part = slice(first, first + copies)
        S = _product(P_B22N[part], S_B2GND[part].to(x_TBD.dtype)).flatten(1, 3)
        S_B2GND[part] = torch.baddbmm(S, weights_BMT[part], x_BTD[part]).view(-1, 2, G, N, D)


def boundary(S_B2GND: torch.Tensor, boundary_B2N: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND: that of `kernels.rtrl` with a row for each copy and part of the state."""
    rows = None if index is None else (2 * index[:, None] + torch.arange(2, device=index.device)).flatten()
    return torch_backend.boundary(S_B2GND.flatten(0, 1), boundary_B2N.flatten(0, 1), rows)
