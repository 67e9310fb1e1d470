"""Projection of an update onto the complement of a basis."""

from __future__ import annotations

import pytest
import torch

from lifelong.kernels.project import project
from tests.kernels.support import assert_close


def orthonormal(n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64))[0].to(dtype)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 13, 4, 2), (33, 20, 20, 0), (16, 24, 0, 16)])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_removes_the_subspace_and_nothing_else(
    backend: str, shape: tuple[int, ...], two_sided: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    m, n, k, j = shape
    before, basis, left = torch.randn(m, n).to(dtype), orthonormal(n, k, dtype), orthonormal(m, j, dtype)
    update = before.clone()
    assert project(update, basis, left if two_sided else None, backend=backend) is update
    expected = before.double() @ (torch.eye(n).double() - basis.double() @ basis.double().T)
    if two_sided:
        expected = (torch.eye(m).double() - left.double() @ left.double().T) @ expected
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert (update.double() - expected).norm() <= tolerance * before.double().norm()
    again = update.clone()
    project(again, basis, left if two_sided else None, backend=backend)
    assert (again - update).norm() <= tolerance * before.norm()  # idempotent


def test_works_on_a_strided_view_in_place() -> None:
    whole = torch.randn(6, 10).double()
    basis = orthonormal(5, 2, torch.float64)
    before = whole.clone()
    project(whole[:, ::2], basis)
    assert torch.equal(whole[:, 1::2], before[:, 1::2])
    assert_close(whole[:, ::2], before[:, ::2] - before[:, ::2] @ basis @ basis.T, 1e-13)


def test_wrong_basis_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="project: basis must have shape"):
        project(torch.zeros(3, 4), torch.zeros(3, 1))
