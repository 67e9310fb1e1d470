"""How ordered a trajectory is: permutation entropy and statistical complexity of ordinal patterns.

n values of a series, `delay` steps apart, have one of n! orders. Of how often each occurs, H is the entropy, 1 for
white noise and 0 for a series that only rises; C is large for what is neither, as deterministic chaos.

Sources: Bandt & Pompe 2002, Phys. Rev. Lett. 88, 174102 (H); Rosso, Larrondo, Martin, Plastino & Fuentes 2007, Phys.
Rev. Lett. 99, 154102 (C and the plane); PECCARY (Hyman, Daniel & Schaffner 2025) scans the delay, as we do.
"""

from __future__ import annotations

import math

import numpy as np

#: windows that an estimate needs, times the number of orders
ENOUGH = 5
#: values of a window
ORDERS = (5, 4, 3)


def windows(is_init_TB: np.ndarray, order: int, delay: int) -> np.ndarray:
    """Where a window begins that lies in one episode, bool [T - (order - 1) * delay, B].

    Args:
        is_init_TB: a new episode begins with this step.
        order: n, values of a window.
        delay: steps between them.
    """
    episode_TB, span = np.cumsum(is_init_TB, 0), (order - 1) * delay
    return np.asarray(episode_TB[: max(0, len(episode_TB) - span)] == episode_TB[span:])


def pattern_shares(x_TBN: np.ndarray, is_init_TB: np.ndarray, order: int, delay: int) -> np.ndarray:
    """The share of every order among the windows of a series, [N, n!]; equal values count as rising.

    Args:
        x_TBN: N series; what a window holds is of one copy b and one episode.
        is_init_TB: a new episode begins with this step.
        order: n, values of a window.
        delay: steps between them.

    Raises:
        ValueError: there is no window.
    """
    there, count = windows(is_init_TB, order, delay), math.factorial(order)
    if not there.any():
        raise ValueError(f"no episode has {(order - 1) * delay + 1} steps, which a window of {order} values spans")
    values_WnN = np.stack([x_TBN[j * delay : j * delay + len(there)][there] for j in range(order)], 1)
    order_WnN = np.argsort(values_WnN, 1, kind="stable")
    place = np.zeros((len(order_WnN), order_WnN.shape[2]), dtype=np.int64)  # of the order among all, by its Lehmer code
    for j in range(order):
        smaller = (order_WnN[:, j + 1 :] < order_WnN[:, j : j + 1]).sum(1)
        place = place * (order - j) + smaller
    units = np.arange(place.shape[1])
    counts = np.bincount((place + units * count).ravel(), minlength=count * len(units)).reshape(-1, count)
    return np.asarray(counts / len(place))


def entropy(share_NM: np.ndarray) -> np.ndarray:
    """Normalised permutation entropy H in [0, 1] of shares that add up to 1, [...] of [..., M]."""
    return np.asarray(_entropy(share_NM) / math.log(share_NM.shape[-1]))


def complexity(share_NM: np.ndarray) -> np.ndarray:
    """Jensen-Shannon statistical complexity C in [0, 1), [...] of [..., M]: H times the Jensen-Shannon divergence from
    equal shares, over the largest that there is."""
    count = share_NM.shape[-1]
    between = _entropy((share_NM + 1 / count) / 2) - _entropy(share_NM) / 2 - math.log(count) / 2
    largest = -0.5 * ((count + 1) / count * math.log(count + 1) - 2 * math.log(2 * count) + math.log(count))
    return np.asarray(between / largest * entropy(share_NM))


def envelope(order: int, points: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest C at an H, as curves of points (H, C), [.., 2] each.

    Lowest where one order is more frequent and all others are equal; highest where m orders do not occur, one is rarer
    and the rest are equal (Martin, Plastino & Rosso 2006, Physica A 369, 439).
    """
    count = math.factorial(order)
    one = np.linspace(1 / count, 1, points)
    low = np.full((points, count), 0.0)
    low[:] = ((1 - one) / (count - 1))[:, None]
    low[:, 0] = one
    high = []
    for absent in reversed(range(count - 1)):
        for rare in np.linspace(0, 1 / (count - absent), max(2, points // count)):
            share = np.zeros(count)
            share[absent] = rare
            share[absent + 1 :] = (1 - rare) / (count - absent - 1)
            high.append(share)
    return tuple(np.stack([entropy(s), complexity(s)], 1) for s in (low, np.array(high)))  # type: ignore[return-value]


def order_for(masks: list[np.ndarray]) -> int | None:
    """The largest number of values for which every one of the `masks` (is_init [T, B]) has windows enough at a delay of
    one step; None if three are too many."""
    for order in ORDERS:
        if all(windows(mask, order, 1).sum() >= ENOUGH * math.factorial(order) for mask in masks):
            return order
    return None


def _entropy(share: np.ndarray) -> np.ndarray:
    return np.asarray(-(share * np.log(np.where(share > 0, share, 1.0))).sum(-1))
