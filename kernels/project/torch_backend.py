"""Projection of an update by two thin matrix products a side; nothing of the projector's size is ever built."""

from __future__ import annotations

import torch


def project(update_MN: torch.Tensor, basis_NK: torch.Tensor, left_basis_MJ: torch.Tensor | None) -> None:
    """U <- U - (U M) M^T, then U <- U - L (L^T U)."""
    update_MN.addmm_(update_MN @ basis_NK, basis_NK.t(), alpha=-1)
    if left_basis_MJ is not None:
        update_MN.addmm_(left_basis_MJ, left_basis_MJ.t() @ update_MN, alpha=-1)
