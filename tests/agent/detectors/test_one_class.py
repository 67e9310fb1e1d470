"""The ellipsoid against the Gaussian that it is drawn around."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from lifelong.agent.detectors.one_class import OneClass, distances, ellipsoid


def gaussian(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.3, 0.1]], dtype=torch.float64)
    return torch.randn(rows, 3, generator=draw, dtype=torch.float64) @ mix.T + 5.0, mix @ mix.T


def test_it_is_that_of_the_moments_and_its_radius_the_quantile_of_chi_square() -> None:
    rows, covariance = gaussian(40_000)
    mean, found = ellipsoid(rows, 0.0)
    torch.testing.assert_close(mean, torch.full((3,), 5.0, dtype=torch.float64), atol=0.05, rtol=0)
    torch.testing.assert_close(found, covariance, atol=0.1, rtol=0.05)
    radius = float(distances(rows, mean, found).quantile(0.99))
    assert radius == pytest.approx(stats.chi2(3).ppf(0.99), rel=0.03)


def test_distances_are_those_of_mahalanobis() -> None:
    rows, covariance = gaussian(7)
    mean = torch.full((3,), 5.0, dtype=torch.float64)
    inverse = covariance.inverse()
    expected = torch.stack([(x - mean) @ inverse @ (x - mean) for x in rows])
    torch.testing.assert_close(distances(rows, mean, covariance), expected)


def test_the_share_outside_is_as_asked_in_the_same_context_and_large_in_another() -> None:
    detector = OneClass(outside=0.05, memory=30, patience=2, share=0.5, rows=128)
    detector.setup(0, 16, torch.device("cpu"))
    rows, _ = gaussian(100 * 128, seed=1)
    outside = []
    for chunk in rows.view(100, 8, 16, 3):
        assert detector.update(chunk) == 0
        outside.append(detector.found)
    assert sum(outside[30:]) / 70 == pytest.approx(0.05, abs=0.01)
    # along the thinnest axis, where each coordinate alone would show little
    other = rows.view(100, 8, 16, 3)[0] + torch.tensor([0.0, 0.5, -0.8], dtype=torch.float64)
    assert [detector.update(other), detector.update(other)] == [0, 2]
    assert detector.found > 0.9


def test_a_dimension_that_never_moved_tells_when_it_does() -> None:
    detector = OneClass(memory=3, patience=1)
    detector.setup(0, 4, torch.device("cpu"))
    draw = torch.Generator().manual_seed(2)
    for _ in range(5):
        values = torch.randn(4, 4, 2, generator=draw, dtype=torch.float64)
        values[..., 1] = 0.0
        assert detector.update(values) == 0
    values[..., 1] = 1.0
    assert detector.update(values) == 1
