"""Likeness of representations against what it must be."""

from __future__ import annotations

import math

import pytest
import torch

from lifelong.agent.analysis.representation import cka, overlap
from lifelong.agent.runtime.plasticity import dormant_units, effective_rank


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_rotated_scaled_and_shifted_representation_is_the_same() -> None:
    x = normal(200, 8)
    rotation, _ = torch.linalg.qr(normal(8, 8, seed=1))
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0, abs=1e-12)


def test_what_has_nothing_in_common_has_no_likeness() -> None:
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(200, 1, dtype=torch.float64), normal(200, 6)], 1))
    assert cka(basis[:, 1:4], basis[:, 4:7]) == pytest.approx(0.0, abs=1e-12)


def test_likeness_by_hand() -> None:
    x = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert cka(x, x[:, :1]) == pytest.approx(2**-0.5)  # |Y'X|^2 = 4, |X'X| = 8^0.5, |Y'Y| = 2
    assert math.isnan(cka(x, torch.full((4, 2), 0.1)))


def test_overlap_is_the_share_of_the_variance_in_the_others_directions() -> None:
    x, y = normal(500, 4), normal(500, 4, seed=1) * torch.tensor([1.0, 1.0, 0, 0])
    x = x / x.std(0) * torch.tensor([2.0, 1, 1, 0])
    assert overlap(x, y) == pytest.approx(5 / 6, abs=1e-6)
    assert overlap(y, x) == pytest.approx(1.0)
    assert math.isnan(overlap(x, torch.zeros(5, 4)))


def test_rank_and_dormancy_by_hand() -> None:
    x = torch.zeros(9, 4)
    x[0, 0], x[1, 1], x[2, 2] = 2.0, 2.0, 2.0
    assert effective_rank(x) == pytest.approx(3.0)
    assert dormant_units(x) == 0.25
