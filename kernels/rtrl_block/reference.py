"""RTRL carry with 2x2 blocks, step by step as in the literature; the oracle of the other backends."""

from __future__ import annotations

import torch


def advance(S_B2GND: torch.Tensor, J_TB22N: torch.Tensor, l_TB2GN: torch.Tensor, x_TBD: torch.Tensor) -> None:
    """S_t = J_t S_{t-1} + l_t (outer) x_t, in the precision of J; S is overwritten with the last."""
    S = S_B2GND.to(J_TB22N.dtype)
    for J_B22N, l_B2GN, x_BD in zip(J_TB22N, l_TB2GN, x_TBD, strict=True):
        S = torch.einsum("bijn,bjgnd->bignd", J_B22N, S) + l_B2GN[..., None] * x_BD[:, None, None, None, :]
    S_B2GND.copy_(S)


def advance_vector(S_B2KN: torch.Tensor, J_TB22N: torch.Tensor, l_TB2KN: torch.Tensor) -> None:
    """S_t = J_t S_{t-1} + l_t; S is overwritten with the last."""
    S = S_B2KN
    for J_B22N, l_B2KN in zip(J_TB22N, l_TB2KN, strict=True):
        S = torch.einsum("bijn,bjkn->bikn", J_B22N, S) + l_B2KN
    S_B2KN.copy_(S)


def boundary(S_B2GND: torch.Tensor, boundary_B2N: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad[g,n,d] = sum over i and both parts of boundary[i,:,n] S[index[i],:,g,n,d]."""
    S = S_B2GND if index is None else S_B2GND[index]
    return torch.einsum("bin,bignd->gnd", boundary_B2N, S.to(boundary_B2N.dtype))
