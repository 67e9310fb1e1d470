"""RTRL carry, step by step as in the literature; the oracle of the other backends."""

from __future__ import annotations

import torch


def advance(
    S_BGND: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBGN: torch.Tensor,
    x_TBD: torch.Tensor,
    boundary_BN: torch.Tensor | None,
    out_BGND: torch.Tensor,
) -> torch.Tensor | None:
    """S_t = a_t S_{t-1} + l_t (outer) x_t, in the precision of `a`; written to `out`."""
    grad = None if boundary_BN is None else boundary(S_BGND, boundary_BN, None)
    S = S_BGND.to(a_TBN.dtype)
    for a_BN, l_BGN, x_BD in zip(a_TBN, l_TBGN, x_TBD, strict=True):
        S = a_BN[:, None, :, None] * S + l_BGN[..., None] * x_BD[:, None, None, :]
    out_BGND.copy_(S)
    return grad


def advance_vector(
    S_BKN: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBKN: torch.Tensor,
    boundary_BN: torch.Tensor | None,
    out_BKN: torch.Tensor,
) -> torch.Tensor | None:
    """S_t = a_t S_{t-1} + l_t; written to `out`."""
    grad = None if boundary_BN is None else torch.einsum("bn,bkn->kn", boundary_BN, S_BKN)
    S = S_BKN
    for a_BN, l_BKN in zip(a_TBN, l_TBKN, strict=True):
        S = a_BN[:, None] * S + l_BKN
    out_BKN.copy_(S)
    return grad


def boundary(S_BGND: torch.Tensor, boundary_BN: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad[g,n,d] = sum_i boundary[i,n] S[index[i],g,n,d]."""
    S = S_BGND if index is None else S_BGND[index]
    return torch.einsum("bn,bgnd->gnd", boundary_BN, S.to(boundary_BN.dtype))
