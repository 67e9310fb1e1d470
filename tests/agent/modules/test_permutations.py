"""Learned permutations: Sinkhorn's matrix and its derivative, and the best assignment against SciPy's."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from lifelong.agent.modules.permutations import assignment, sinkhorn


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_rows_and_columns_sum_to_one(size: int) -> None:
    p = sinkhorn(torch.randn(size, size, generator=torch.Generator().manual_seed(1)), 0.5, 100)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(0), torch.ones(size), atol=1e-4, rtol=0)
    torch.testing.assert_close(p.sum(1), torch.ones(size), atol=1e-4, rtol=0)


def test_the_implicit_derivative_is_that_of_finite_differences() -> None:
    score = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    for temperature in (1.0, 0.3):
        torch.autograd.gradcheck(lambda x, t=temperature: sinkhorn(x, t, 3000), score)


def test_the_implicit_derivative_is_that_of_the_unrolled_iteration() -> None:
    score = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    log = score / 0.7
    for _ in range(500):
        log = log - log.logsumexp(0, keepdim=True)
        log = log - log.logsumexp(1, keepdim=True)
    weight = torch.randn_like(score)
    (unrolled,) = torch.autograd.grad((log.exp() * weight).sum(), score)
    (implicit,) = torch.autograd.grad((sinkhorn(score, 0.7, 500) * weight).sum(), score)
    torch.testing.assert_close(implicit, unrolled, rtol=1e-8, atol=1e-10)


def test_cold_it_becomes_the_best_assignment() -> None:
    score = torch.randn(6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    p = sinkhorn(score, 0.01, 5000)
    hard = torch.nn.functional.one_hot(assignment(score), 6).double()
    torch.testing.assert_close(p, hard, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64])
def test_the_assignment_is_that_of_scipy(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for kind in ("continuous", "ties"):
        score = torch.randn(size, size, generator=generator, dtype=torch.float64)
        score = score.round() if kind == "ties" else score
        rows, columns = linear_sum_assignment(score.numpy(), maximize=True)
        found = assignment(score)
        assert sorted(found.tolist()) == list(range(size))
        best = score[torch.from_numpy(rows), torch.from_numpy(columns)].sum()
        torch.testing.assert_close(score[torch.arange(size), found].sum(), best)
