"""In-place projection of a realised update onto the complement of a protected subspace."""

from __future__ import annotations

import torch

from lifelong.kernels.dispatch import Op, check

_PROJECT = Op("project", "lifelong.kernels.project", backends=("reference", "torch", "triton"))


@torch.no_grad()
def project(
    update_MN: torch.Tensor,
    basis_NK: torch.Tensor,
    left_basis_MJ: torch.Tensor | None = None,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """U <- U - (U M) M^T in place, and with a left basis U <- U - L (L^T U) too; returns U.

    update_MN: the step of a weight (outputs, inputs); basis_NK: orthonormal columns spanning protected inputs;
    left_basis_MJ: orthonormal columns spanning protected outputs. Source: Saha, Garg, Roy, "Gradient Projection Memory"
    (ICLR 2021).
    """
    op = "project"
    if update_MN.ndim != 2 or basis_NK.ndim != 2 or (left_basis_MJ is not None and left_basis_MJ.ndim != 2):
        raise ValueError(f"{op}: update and bases must be matrices")
    M, N = update_MN.shape
    check(op, "basis", basis_NK, (N, basis_NK.shape[1]), update_MN)
    if left_basis_MJ is not None:
        check(op, "left_basis", left_basis_MJ, (M, left_basis_MJ.shape[1]), update_MN)
    _PROJECT.module(backend, update_MN).project(update_MN, basis_NK, left_basis_MJ)
    return update_MN
