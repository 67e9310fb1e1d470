"""CUSUM against its recursion as the textbooks have it, and against published run lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong.agent.detectors.cusum import CUSUM, page


def fed(detector: CUSUM, means: list[float], spread: float = 0.0) -> list[int]:
    """What the detector says to chunks of 2 x 2 steps with these means, without the gap."""
    detector.setup(0, 2, torch.device("cpu"))
    pattern = spread * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).unsqueeze(-1)
    return [detector.update(mean + pattern) for mean in means]


def test_the_sums_are_those_of_the_textbook() -> None:
    # Montgomery, Introduction to Statistical Quality Control, 6th edition, table 9.2: target 10, sigma 1, k 0.5;
    # the first 20 samples are in control, the last 10 are shifted by one standard deviation
    x = [9.45, 7.99, 9.29, 11.66, 12.16, 10.18, 8.04, 11.46, 9.20, 10.34, 9.03, 11.47, 10.51, 9.40, 10.08]
    x += [9.37, 10.62, 10.31, 8.52, 10.84, 10.90, 9.33, 12.29, 11.50, 10.60, 11.08, 10.38, 11.62, 11.31, 10.52]
    upper = [0, 0, 0, 1.16, 2.82, 2.50, 0.04, 1.00, 0, 0, 0, 0.97, 0.98, 0, 0]
    upper += [0, 0.12, 0, 0, 0.34, 0.74, 0, 1.79, 2.79, 2.89, 3.47, 3.35, 4.47, 5.28, 5.30]
    lower = [0.05, 1.56, 1.77, 0, 0, 0, 1.46, 0, 0.30, 0, 0.47, 0, 0, 0.10, 0]
    lower += [0.13, 0, 0, 0.98, 0, 0, 0.17, 0, 0, 0, 0, 0, 0, 0, 0]
    sums = torch.zeros(2, dtype=torch.float64)
    for value, above, below in zip(x, upper, lower, strict=True):
        sums = page(sums, torch.tensor(value - 10.0, dtype=torch.float64), 0.5)
        assert sums.tolist() == pytest.approx([above, below], abs=0.006)


@pytest.mark.parametrize(
    ("threshold", "shift", "published"), [(4.0, 0.0, 168.0), (4.0, 1.0, 8.38), (5.0, 0.0, 465.0), (5.0, 1.0, 10.4)]
)
def test_run_lengths_are_the_published_ones(threshold: float, shift: float, published: float) -> None:
    # two-sided, k = 0.5, Lucas & Crosier 1982 (Montgomery, table 9.3)
    draw = torch.Generator().manual_seed(0)
    series, sums = 4000, torch.zeros(2, 4000)
    length, running = torch.zeros(series), torch.ones(series, dtype=torch.bool)
    while bool(running.any()) and length.max() < 6000:
        sums = page(sums, torch.randn(series, generator=draw) + shift, 0.5)
        length += running
        running &= sums.amax(0) <= threshold
    assert float(length.mean()) == pytest.approx(published, rel=4 / series**0.5)


def test_an_alarm_says_where_the_sum_left_zero() -> None:
    noise = torch.randn(20, generator=torch.Generator().manual_seed(1)).tolist()
    still = [sum(noise) / 20] * 10  # the sums are 0
    said = fed(CUSUM(drift=1.0, threshold=5.0, warm_up=20, memory=0), [*noise, *still, 3.5, 3.5, 3.5, 3.5])
    first = next(index for index, new in enumerate(said) if new)
    assert first > 30 and said[first] == first - 29


@pytest.mark.parametrize(("side", "step", "found"), [("rise", 9.0, True), ("fall", 9.0, False), ("fall", -9.0, True)])
def test_one_side_may_be_asked_alone(side: str, step: float, found: bool) -> None:
    noise = torch.randn(20, generator=torch.Generator().manual_seed(2)).tolist()
    said = fed(CUSUM(side=side, threshold=4.0), [*noise, step, step])  # type: ignore[arg-type]
    assert bool(max(said)) == found


def test_what_moves_slowly_is_followed_and_a_jump_is_not() -> None:
    slow = [0.05 * t for t in range(400)]
    noise = (0.1 * torch.randn(400, generator=torch.Generator().manual_seed(3))).tolist()
    moving = [a + b for a, b in zip(slow, noise, strict=True)]
    assert max(fed(CUSUM(), moving)) == 0
    assert max(fed(CUSUM(memory=0), moving)) > 0
    assert fed(CUSUM(), [*moving, moving[-1] + 20.0])[-1] == 1


def test_means_that_hardly_vary_are_judged_by_the_spread_of_single_steps() -> None:
    # four independent steps with deviation 2 have a mean with deviation 1: 5 is no 50 standard deviations
    still = [0.1 * (-1) ** t for t in range(30)]
    assert max(fed(CUSUM(threshold=10.0), [*still, 5.0], spread=2.0)) == 0
    assert max(fed(CUSUM(threshold=10.0), [*still, 5.0], spread=0.0)) > 0


def test_every_dimension_has_a_sum_of_its_own() -> None:
    detector = CUSUM()
    detector.setup(0, 2, torch.device("cpu"))
    noise = torch.randn(31, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def chunk(row_D: Tensor) -> Tensor:
        return row_D.expand(2, 2, -1)

    assert max(detector.update(chunk(row)) for row in noise[:30]) == 0
    assert detector.update(chunk(noise[30] + torch.tensor([0.0, 20.0]))) == 1
