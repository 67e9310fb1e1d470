"""RTRL carry with PxP blocks, step by step as in the literature; the oracle of the other backends."""

from __future__ import annotations

import torch


def advance(S_BPGND: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPGN: torch.Tensor, x_TBD: torch.Tensor) -> None:
    """S_t = J_t S_{t-1} + l_t (outer) x_t, in the precision of J; S is overwritten with the last."""
    S = S_BPGND.to(J_TBPPN.dtype)
    for J_BPPN, l_BPGN, x_BD in zip(J_TBPPN, l_TBPGN, x_TBD, strict=True):
        S = torch.einsum("bijn,bjgnd->bignd", J_BPPN, S) + l_BPGN[..., None] * x_BD[:, None, None, None, :]
    S_BPGND.copy_(S)


def advance_vector(S_BPKN: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPKN: torch.Tensor) -> None:
    """S_t = J_t S_{t-1} + l_t; S is overwritten with the last."""
    S = S_BPKN
    for J_BPPN, l_BPKN in zip(J_TBPPN, l_TBPKN, strict=True):
        S = torch.einsum("bijn,bjkn->bikn", J_BPPN, S) + l_BPKN
    S_BPKN.copy_(S)


def boundary(S_BPGND: torch.Tensor, boundary_BPN: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad[g,n,d] = sum over i and the parts of boundary[i,:,n] S[index[i],:,g,n,d]."""
    S = S_BPGND if index is None else S_BPGND[index]
    return torch.einsum("bin,bignd->gnd", boundary_BPN, S.to(boundary_BPN.dtype))
