"""What is said of a few seeds, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lifelong.agent.report.statistics import interquartile_mean, permutation_test


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (5, 5), (4, 7), (15, 15)])
def test_p_is_that_of_a_permutation_test(n: int, m: int) -> None:
    draw = np.random.default_rng(n * m)
    one, other = draw.standard_normal(n), draw.standard_normal(m) + 0.7
    expected = stats.permutation_test(
        (one, other), lambda a, b, axis: abs(a.mean(axis) - b.mean(axis)), alternative="greater", vectorized=True
    )
    assert permutation_test(one.tolist(), other.tolist()) == pytest.approx(expected.pvalue, abs=0.02 * (n > 10) + 1e-3)


def test_few_seeds_cannot_be_significant() -> None:
    assert permutation_test([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]) == pytest.approx(0.1)
    assert permutation_test([1.0, 0.5], [1.0, 0.5]) == 1.0
    assert math.isnan(permutation_test([1.0], [0.0, 0.0])) and math.isnan(permutation_test([math.nan, 1], [0, 0]))


@pytest.mark.parametrize("count", [1, 4, 9, 20])
def test_the_interquartile_mean_leaves_out_a_quarter_on_either_side(count: int) -> None:
    values = np.random.default_rng(count).standard_normal(count)
    assert interquartile_mean(values.tolist()) == pytest.approx(stats.trim_mean(values, 0.25))
    assert math.isnan(interquartile_mean([]))
