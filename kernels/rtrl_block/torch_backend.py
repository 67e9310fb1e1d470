"""RTRL carry with PxP blocks in torch operations: suffix products, then one batched matmul for all gates."""

from __future__ import annotations

import torch

from lifelong.kernels.rtrl import torch_backend
from lifelong.kernels.rtrl_block.reference import advance_vector

__all__ = ["advance", "advance_vector", "boundary"]

# Bytes of compute-precision copies of S that may exist at a time.
_SLICE_BYTES = 1 << 26


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[B, P, P, N] times [B, P, M, ...], unit by unit; written out, as N lies inside the matrices."""
    extra = (1,) * (right.ndim - 4)
    left = left.reshape(*left.shape, *extra)
    return torch.stack([left[:, :, k, None] * right[:, k, None] for k in range(right.shape[1])]).sum(0)


def advance(S_BPGND: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPGN: torch.Tensor, x_TBD: torch.Tensor) -> None:
    """S <- A S + sum_t (P_t l_t) (outer) x_t."""
    B, P, G, N, D = S_BPGND.shape
    P_BPPN = torch.eye(P, dtype=x_TBD.dtype, device=x_TBD.device)[:, :, None].expand(B, P, P, N)
    weights: list[torch.Tensor] = []
    for J_BPPN, l_BPGN in zip(J_TBPPN.flip(0), l_TBPGN.flip(0), strict=True):
        weights.append(_product(P_BPPN, l_BPGN).flatten(1))
        P_BPPN = _product(P_BPPN, J_BPPN)
    weights_BMT, x_BTD = torch.stack(weights[::-1], dim=2), x_TBD.transpose(0, 1)
    copies = max(1, _SLICE_BYTES // (4 * P * G * N * D))
    for first in range(0, B, copies):
        part = slice(first, first + copies)
        S = _product(P_BPPN[part], S_BPGND[part].to(x_TBD.dtype)).flatten(1, 3)
        S_BPGND[part] = torch.baddbmm(S, weights_BMT[part], x_BTD[part]).view(-1, P, G, N, D)


def boundary(S_BPGND: torch.Tensor, boundary_BPN: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND: that of `kernels.rtrl` with a row for each copy and part of the state."""
    rows = (
        None
        if index is None
        else (S_BPGND.shape[1] * index[:, None] + torch.arange(S_BPGND.shape[1], device=index.device)).flatten()
    )
    return torch_backend.boundary(S_BPGND.flatten(0, 1), boundary_BPN.flatten(0, 1), rows)
