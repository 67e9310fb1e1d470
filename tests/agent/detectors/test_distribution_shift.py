"""The two-sample test against scipy's statistics, and its level on a stream that does not change."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from lifelong.agent.detectors.distribution_shift import DistributionShift, energy, ks, statistics


def labels(n: int) -> Tensor:
    return torch.cat([torch.ones(n), -torch.ones(n)]).double().view(1, -1)


def samples(seed: int, shift: float = 0.0, size: int = 30, dimensions: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, size, dimensions, generator=draw, dtype=torch.float64)
    return x, y + shift


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_statistics_are_scipys(shift: float) -> None:
    x, y = samples(1, shift)
    a, b = x.flatten().numpy(), y.flatten().numpy()
    ours = float(statistics("energy", energy(x, y)[0], labels(30)))
    assert ours == pytest.approx(stats.energy_distance(a, b) ** 2, rel=1e-9)
    ours = float(statistics("ks", ks(x, y)[0], labels(30)))
    assert ours == pytest.approx(stats.ks_2samp(a, b).statistic, rel=1e-9)


def test_of_several_dimensions_ks_takes_the_largest() -> None:
    x, y = samples(2, torch.tensor([0.0, 1.0, 0.2]), dimensions=3)  # type: ignore[arg-type]
    each = [stats.ks_2samp(x[:, d].numpy(), y[:, d].numpy()).statistic for d in range(3)]
    assert float(statistics("ks", ks(x, y)[0], labels(30))) == pytest.approx(max(each))


def windows(draw: torch.Generator, correlation: float, copies: int = 12, steps: int = 6) -> tuple[Tensor, Tensor]:
    """Two windows [copies, steps, 2] of a stationary process whose steps hang together."""
    x = torch.randn(copies, 2, generator=draw, dtype=torch.float64)
    seen = []
    for _ in range(2 * steps):
        x = correlation * x + (1 - correlation**2) ** 0.5 * torch.randn(copies, 2, generator=draw, dtype=torch.float64)
        seen.append(x)
    series = torch.stack(seen, 1)
    return series[:, :steps], series[:, steps:]


@pytest.mark.parametrize("test", ["energy", "ks"])
@pytest.mark.parametrize("correlation", [0.0, 0.95])
def test_the_rate_of_false_alarms_is_the_level_however_steps_hang_together(test: str, correlation: float) -> None:
    detector = DistributionShift(test=test, size=0.0, alpha=0.1, permutations=99)  # type: ignore[arg-type]
    detector.setup(0, 12, torch.device("cpu"))
    draw, tests = torch.Generator().manual_seed(3), 300
    alarms = sum(detector.compare(*windows(draw, correlation))[1] <= 0.1 for _ in range(tests))
    assert stats.binomtest(alarms, tests, 0.1, alternative="greater").pvalue > 0.01
    assert alarms > 0.05 * tests  # and it is not so because the test is blind


def test_permuting_single_steps_would_not_keep_the_level() -> None:
    # the reason why whole copies change places: the same statistic, p from free permutations of all steps
    draw, tests, alarms = torch.Generator().manual_seed(3), 100, 0
    for _ in range(tests):
        before, now = windows(draw, 0.95)
        made_of, _ = energy(before.flatten(0, 1), now.flatten(0, 1))
        label = labels(72)
        free = torch.stack([label[0, torch.randperm(144, generator=draw)] for _ in range(99)])
        p = (1 + int((statistics("energy", made_of, free) >= statistics("energy", made_of, label)).sum())) / 100
        alarms += p <= 0.1
    assert alarms > 0.2 * tests


def test_a_stream_that_changes_is_found_within_two_windows() -> None:
    detector = DistributionShift(window=3, alpha=0.01, permutations=199)
    detector.setup(0, 16, torch.device("cpu"))
    draw = torch.Generator().manual_seed(5)
    said = []
    for chunk in range(40):
        values = torch.randn(8, 16, 2, generator=draw, dtype=torch.float64) + (1.5 if chunk >= 30 else 0.0)
        said.append(detector.update(values))
    assert not any(said[:30])
    first = next(index for index, new in enumerate(said) if new)
    assert 30 <= first <= 36 and said[first] == 3


def test_too_few_copies_or_permutations_for_the_level_are_refused() -> None:
    with pytest.raises(ValueError, match="permutations is 50"):
        DistributionShift(alpha=0.01, permutations=50)
    with pytest.raises(ValueError, match="2 copies cannot make p as small as"):
        DistributionShift(alpha=0.01).setup(0, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="signal is loss"):
        DistributionShift(signal="loss")
