"""HiddenMarkov: the filter is Bayes' rule over all paths, and nothing beats it on the symbols themselves."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from lifelong.envs.prediction.hidden_markov import HiddenMarkov


def over_paths(symbols: list[int], states: int, stay: float, clear: float) -> np.ndarray:
    """p(next symbol | symbols), by the sum over all paths of hidden states."""
    move = lambda a, b: stay if a == b else (1 - stay) / (states - 1)  # noqa: E731
    show = lambda s, x: clear if s == x else (1 - clear) / (states - 1)  # noqa: E731
    found = np.zeros(states)
    for path in product(range(states), repeat=len(symbols) + 1):
        weight = np.prod([move(a, b) for a, b in pairwise(path)])
        weight *= np.prod([show(s, x) for s, x in zip(path, symbols, strict=False)])
        found += weight * np.array([show(path[-1], x) for x in range(states)])
    return found / found.sum()


@pytest.mark.parametrize(("stay", "clear"), [(0.9, 0.85), (0.5, 0.6)])
def test_the_filter_is_bayes_rule_over_all_paths(stay: float, clear: float) -> None:
    env = HiddenMarkov(2, symbols=3, length=4, stay=stay, clear=clear, seed=1)
    obs, _ = env.reset()
    symbols: list[list[int]] = [[], []]
    for _ in range(4):
        best = []
        for copy, seen in enumerate(symbols):
            seen.append(int(obs[copy]))
            best.append(over_paths(seen, 3, stay, clear))
        action = torch.tensor(np.array(best), dtype=torch.float32)
        obs, reward, *_ = env.step(action)
        assert reward.abs().max() < 1e-10


def test_the_filter_predicts_the_symbols_better_than_anything_nearby() -> None:
    env = HiddenMarkov(4000, seed=0)
    env.reset()
    errors = torch.zeros(3)
    for _ in range(60):
        best = env._mixed(env._mixed(env.state.belief, env.params["stay"]), env.params["clear"])
        others = [best, 0.9 * best + 0.1 / 3, 1.2 * best - 0.2 / 3]
        target = env.step(best)[4]["target"]
        assert bool((target.sum(1) == 1).all())
        errors += torch.stack([(x - target).square().sum(1).mean() for x in others])
    assert errors.argmin() == 0


def test_the_score_is_that_of_even_shares() -> None:
    env = HiddenMarkov(4000, seed=0)
    env.reset()
    total = sum(float(env.step(torch.full((4000, 3), 1 / 3))[1].mean()) for _ in range(100))
    assert total == pytest.approx(HiddenMarkov.SCORE[0], abs=0.004)
