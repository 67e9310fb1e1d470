"""Permutation entropy and complexity against series whose orders are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lifelong.agent.analysis.ordinal import complexity, entropy, envelope, order_for, pattern_shares, windows


def plane(x: np.ndarray, order: int, delay: int = 1) -> tuple[float, float]:
    """H and C of one series."""
    start = np.arange(len(x))[:, None] == 0
    share = pattern_shares(x[:, None, None], start, order, delay)
    return float(entropy(share)[0]), float(complexity(share)[0])


def logistic(steps: int) -> np.ndarray:
    x = [0.3]
    for _ in range(steps):
        x.append(4 * x[-1] * (1 - x[-1]))
    return np.array(x)


def test_the_example_of_bandt_and_pompe() -> None:
    x = np.array([4.0, 7, 9, 10, 6, 11, 3])
    assert plane(x, 2)[0] == pytest.approx(0.918, abs=5e-4)  # bits, and of two orders all is one bit
    assert plane(x, 3)[0] == pytest.approx(1.522 / math.log2(6), abs=5e-4)


def test_white_noise_has_entropy_one_and_no_complexity() -> None:
    h, c = plane(np.random.default_rng(0).normal(size=50_000), 5)
    assert h > 0.999 and c < 0.003


@pytest.mark.parametrize("x", [np.arange(500.0), np.zeros(500)], ids=["rising", "constant"])
def test_a_series_that_rises_or_stays_has_neither(x: np.ndarray) -> None:
    assert plane(x, 4) == (0.0, 0.0)


def test_the_logistic_map_lies_where_its_invariant_measure_puts_it() -> None:
    # conjugate to the tent map with its uniform measure, on which the three values are ordered alike between the fixed
    # points 2/3 of one step and 2/5, 4/5 of two, and 1/3
    shares = np.array([5, 1, 4, 2, 3, 0]) / 15
    h, c = plane(logistic(200_000), 3)
    assert h == pytest.approx(float(entropy(shares)), abs=2e-3)
    assert c == pytest.approx(float(complexity(shares)), abs=2e-3)


def test_the_logistic_map_has_the_published_place_on_the_plane() -> None:
    h, c = plane(logistic(2**15), 6)  # Rosso et al. 2007, table I
    assert (h, c) == (pytest.approx(0.629, abs=0.005), pytest.approx(0.484, abs=0.005))


def test_the_delay_skips_values() -> None:
    x = np.empty(4000)
    x[::2], x[1::2] = np.arange(2000.0), np.random.default_rng(1).normal(size=2000)
    start = np.arange(4000)[:, None] == 0
    share = pattern_shares(x[:, None, None], start, 3, 2)[0]
    # half of all windows are of the rising values alone, and of the others every order is as frequent
    assert share[0] == pytest.approx(0.5 + 0.5 / 6, abs=0.02)
    assert np.allclose(share[1:], 0.5 / 6, atol=0.02)


def test_no_window_spans_two_episodes() -> None:
    is_init = np.zeros((9, 2), dtype=bool)
    is_init[[0, 4, 8], 0] = True
    assert windows(is_init, 3, 1)[:, 0].tolist() == [True, True, False, False, True, True, False]
    assert windows(is_init, 3, 1)[:, 1].all()
    x = np.tile(np.arange(4.0), 3)[:9, None, None].repeat(2, 1)  # falls at every border of the first copy
    assert pattern_shares(x[:, :1], is_init[:, :1], 3, 1)[0, 0] == 1.0
    with pytest.raises(ValueError, match="no episode has 9 steps"):
        pattern_shares(x[:, :1], is_init[:, :1], 5, 2)


def test_every_series_lies_between_the_curves() -> None:
    low, high = envelope(4)
    share = np.random.default_rng(2).dirichlet(np.full(24, 0.3), size=300)
    h, c = entropy(share), complexity(share)
    assert (c >= np.interp(h, *low[::-1].T) - 1e-3).all() and (c <= np.interp(h, *high.T) + 1e-3).all()
    assert (np.diff(high[:, 0]) >= -1e-12).all()


def test_the_order_is_the_largest_with_windows_enough_in_every_task() -> None:
    long, short = np.zeros((700, 1), dtype=bool), np.zeros((130, 1), dtype=bool)
    assert order_for([long]) == 5 and order_for([long, short]) == 4
    assert order_for([np.ones((700, 4), dtype=bool)]) is None
