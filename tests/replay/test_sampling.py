"""Which rows are drawn, how often, and with which weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from lifelong.replay.sampling import Dissimilar, Prioritised, sequence_priority, sliced_wasserstein


def empty(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def prioritised(priorities: list[float], exponent: float = 0.9, importance: float = 0.6) -> Prioritised:
    sampling = Prioritised(exponent, importance)
    sampling.written(list(range(len(priorities))), 2 * len(priorities))
    sampling.scored(torch.arange(len(priorities)), torch.tensor(priorities))
    return sampling


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_rows_are_drawn_in_proportion_to_the_power_of_their_priority(exponent: float) -> None:
    priorities = [0.1, 0.5, 1.0, 2.0, 4.0, 0.01]
    sampling, n = prioritised(priorities, exponent), 60_000
    rows = sampling.rows(n, empty(6), empty(6), 0, torch.Generator().manual_seed(1))
    p = np.array(priorities) ** exponent
    assert stats.chisquare(np.bincount(rows, minlength=6), n * p / p.sum()).pvalue > 0.01


def test_the_weights_take_the_bias_out_of_a_mean() -> None:
    """With beta = 1, sum(w x) / sum(w) over the drawn estimates the plain mean over all rows (Schaul et al., 3.4)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, generator=generator, dtype=torch.float64)
    sampling = prioritised((x + 0.05).tolist(), 1.0, 1.0)
    rows = sampling.rows(200_000, empty(200), empty(200), 0, generator)
    weight = sampling.importance(rows)
    assert weight is not None and float(weight.mean()) == pytest.approx(1.0)
    assert float(x[rows].mean()) > 1.1 * float(x.mean())  # biased
    assert float((weight * x[rows]).mean()) == pytest.approx(float(x.mean()), rel=0.01)
    p = sampling._weight() / sampling._weight().sum()
    by_hand = (200 * p[rows]) ** -1.0
    torch.testing.assert_close(weight, by_hand / by_hand.mean())


def test_a_new_row_has_the_highest_priority_that_is_there() -> None:
    sampling = prioritised([0.5, 3.0, 0.2])
    sampling.written([4, 0], 6)
    assert sampling.priority.tolist() == [3.0, 3.0, pytest.approx(0.2), 0.0, 3.0, 0.0] and sampling.size == 5
    rows = sampling.rows(20_000, empty(5), empty(5), 0, torch.Generator().manual_seed(0))
    assert int((rows == 4).sum()) > 5_000 > 100 > int((rows == 3).sum())
    first = Prioritised()
    first.written([0, 1], 4)
    assert first.priority[:2].tolist() == [1.0, 1.0]


def test_priorities_follow_their_rows_into_a_smaller_buffer() -> None:
    sampling, other = prioritised([1.0, 2.0, 3.0, 4.0]), Prioritised()
    other.load_state_dict(sampling.state_dict(), torch.tensor([3, 1]), 2)
    assert other.priority.tolist() == [4.0, 2.0] and other.size == 2
    other.load_state_dict({}, torch.arange(2), 3)  # another policy was there before
    assert other.priority.tolist() == [1.0, 1.0, 0.0]


def test_a_sequence_s_priority_mixes_its_largest_error_and_their_mean_over_the_steps_that_count() -> None:
    error = torch.tensor([[1.0, 9.0], [3.0, 2.0], [2.0, 4.0]])
    counts = torch.tensor([[True, False], [True, True], [True, True]])
    expected = [0.9 * 3 + 0.1 * 2, 0.9 * 4 + 0.1 * 3]
    torch.testing.assert_close(sequence_priority(error, counts, 0.9), torch.tensor(expected))


def test_along_one_direction_the_distance_is_that_of_scipy() -> None:
    """Points on a circle in a plane: each direction's distance is `scipy.stats.wasserstein_distance`."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 3, generator=generator), torch.randn(50, 3, generator=generator) + torch.tensor([2.0, 0, 0])
    directions = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(a)
    directions = directions / directions.norm(dim=0)
    units = [x / x.norm(dim=-1, keepdim=True) for x in (a, b)]
    expected = [stats.wasserstein_distance(*((x @ directions[:, k]).numpy() for x in units)) for k in range(64)]
    assert float(sliced_wasserstein(a, b)) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(sliced_wasserstein(a, a[torch.randperm(50)])) == pytest.approx(0.0, abs=1e-6)


def test_unlike_tasks_are_replayed_more_and_the_one_in_training_not_at_all() -> None:
    sampling = Dissimilar()
    sampling.distance = {0: 0.3, 1: 0.1, 2: 0.0}
    task = torch.tensor([0] * 10 + [1] * 40 + [2] * 50)
    rows = sampling.rows(40_000, empty(100), task, 0, torch.Generator().manual_seed(0))
    counts = np.bincount(rows, minlength=100)
    expected = np.array([3000.0] * 10 + [250.0] * 40)
    assert stats.chisquare(counts[:50], expected).pvalue > 0.01 and counts[50:].sum() == 0
    sampling.distance = {0: 0.0}
    alone = sampling.rows(1000, empty(4), empty(4), 0, torch.Generator().manual_seed(0))
    assert set(alone.tolist()) == {0, 1, 2, 3}
