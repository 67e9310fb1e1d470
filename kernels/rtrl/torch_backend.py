"""RTRL carry in torch operations: suffix products, then one batched matmul for all gates."""

from __future__ import annotations

import torch

# Bytes of compute-precision copies of a bf16 S that may exist at a time.
_SLICE_BYTES = 1 << 26


def _suffix_products(a_TBN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(P_TBN, A_BN): products of the a_s after each step, and of all of them. No division, so zeros are fine."""
    after = torch.cat([a_TBN[1:], torch.ones_like(a_TBN[:1])])
    P_TBN = after.flip(0).cumprod(0).flip(0)
    return P_TBN, P_TBN[0] * a_TBN[0]


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
    grad = None if boundary_BN is None else boundary(S_BGND, boundary_BN, None)
    P_TBN, A_BN = _suffix_products(a_TBN)
    weights_BMT = (P_TBN[:, :, None] * l_TBGN).flatten(2).permute(1, 2, 0)
    x_BTD = x_TBD.transpose(0, 1)
    copies = B if S_BGND.dtype == a_TBN.dtype else max(1, _SLICE_BYTES // (4 * G * N * D))
    for first in range(0, B, copies):
        part = slice(first, first + copies)
        S = (S_BGND[part] * A_BN[part, None, :, None]).flatten(1, 2)
        out_BGND[part] = torch.baddbmm(S, weights_BMT[part], x_BTD[part]).view(-1, G, N, D)
    return grad


def advance_vector(
    S_BKN: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBKN: torch.Tensor,
    boundary_BN: torch.Tensor | None,
    out_BKN: torch.Tensor,
) -> torch.Tensor | None:
    """Writes the carry after the chunk to `out`; returns grad_KN if a boundary is given."""
    grad = None if boundary_BN is None else (boundary_BN[:, None] * S_BKN).sum(0)
    P_TBN, A_BN = _suffix_products(a_TBN)
    out_BKN.copy_(A_BN[:, None] * S_BKN + (P_TBN[:, :, None] * l_TBKN).sum(0))
    return grad


def boundary(S_BGND: torch.Tensor, boundary_BN: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND, one slice of copies at a time, so that neither S[index] nor a product of S's size ever exists."""
    _, G, N, D = S_BGND.shape
    grad = torch.zeros((G, N, D), dtype=boundary_BN.dtype, device=S_BGND.device)
    copies = max(1, _SLICE_BYTES // (4 * G * N * D))
    for first in range(0, boundary_BN.shape[0], copies):
        part = slice(first, first + copies)
        S = S_BGND[part] if index is None else S_BGND[index[part]]
        grad += torch.einsum("bn,bgnd->gnd", boundary_BN[part], S.to(grad.dtype))
    return grad
