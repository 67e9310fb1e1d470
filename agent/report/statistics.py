"""What can be said of a few seeds: intervals, trimmed means, and whether two rows differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

#: resamples of an interval, and the share of them that lies within
RESAMPLES, WITHIN = 10_000, 0.95
#: as many ways to share seeds out are all tried; of more, as many are drawn
_ALL = 20_000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean, 95 % of 10,000 resamples (Efron & Tibshirani 1993, chapter 13).

    Of one value it is that value; of nothing, or of what is not a number, not a number.
    """
    if not values:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).choice(np.asarray(values, float), (RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(-1), [(1 - WITHIN) / 2, (1 + WITHIN) / 2])
    return float(low), float(high)


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of the middle half (Agarwal et al. 2021, NeurIPS): the lowest and the highest quarter are left out, each
    rounded down. Not a number of nothing."""
    ordered = np.sort(np.asarray(values, float))
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return float(kept.mean()) if len(kept) else math.nan


def permutation_test(one: Sequence[float], other: Sequence[float]) -> float:
    """How likely a difference of means at least as large is, in either direction, if it does not matter which value
    belongs to which side (Fisher 1935; two-sided, over all ways to share the values out, or 20,000 drawn ones).

    Not a number with fewer than two values on a side.
    """
    if min(len(one), len(other)) < 2 or not np.isfinite([*one, *other]).all():
        return math.nan
    values, n = np.array([*one, *other], float), len(one)
    if math.comb(len(values), n) <= _ALL:
        chosen = np.array(list(itertools.combinations(range(len(values)), n)))
    else:
        draw = np.random.default_rng(0)
        chosen = np.argsort(draw.random((_ALL, len(values))), axis=1)[:, :n]
    sums = values[chosen].sum(1)
    difference = np.abs(sums / n - (values.sum() - sums) / len(other))
    seen = abs(float(np.mean(one)) - float(np.mean(other)))
    return float((difference >= seen - 1e-12 * max(1.0, seen)).mean())
