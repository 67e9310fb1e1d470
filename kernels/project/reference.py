"""Projection of an update with the projectors written out; the oracle of the other backend."""

from __future__ import annotations

import torch


def project(update_MN: torch.Tensor, basis_NK: torch.Tensor, left_basis_MJ: torch.Tensor | None) -> None:
    """U <- (I - L L^T) U (I - M M^T)."""
    M, N = update_MN.shape
    result = update_MN @ (torch.eye(N).to(basis_NK) - basis_NK @ basis_NK.T)
    if left_basis_MJ is not None:
        result = (torch.eye(M).to(left_basis_MJ) - left_basis_MJ @ left_basis_MJ.T) @ result
    update_MN.copy_(result)
