"""Series: the values are a pattern and an autoregressive residual, and the score is what the formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong.envs.prediction.series import Series, pattern_of


def live(env: Series, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Observations [T, B, 2], targets [T, B] and returns of whole episodes, always predicting 0."""
    obs, _ = env.reset()
    seen, truth, returns = [], [], []
    for _ in range(steps):
        seen.append(obs)
        obs, _, done, _, info = env.step(torch.zeros(env.num_envs, 1))
        truth.append(info["target"][:, 0])
        returns.append(info["episode_return"][done])
        assert bool(info["target_mask"].all()) and torch.equal(info["target"][:, 0], info["final_obs"][:, 0])
    return torch.stack(seen), torch.stack(truth), torch.cat(returns)


def test_values_are_the_pattern_of_the_task_and_a_residual_that_decays() -> None:
    env = Series(2000, period=6, length=50, ar=0.7, noise=0.4, seed=0)
    seen, truth, _ = live(env, 40)
    pattern = pattern_of(0, 6)
    assert abs(float(pattern.mean())) < 1e-6 and abs(float(pattern.square().mean()) - 1) < 1e-5
    residual = seen[..., 0] - pattern[seen[..., 1].long()]
    assert abs(float(residual.std()) - 0.4) < 0.01
    following = truth - pattern[(seen[..., 1].long() + 1) % 6]
    slope = float((residual * following).sum() / residual.square().sum())
    assert abs(slope - 0.7) < 0.01
    left = following - 0.7 * residual
    assert abs(float(left.std()) - 0.4 * (1 - 0.7**2) ** 0.5) < 0.01
    assert torch.equal(seen[1:, :, 1], (seen[:-1, :, 1] + 1) % 6)


def test_saying_nothing_has_no_performance_and_knowing_all_but_the_noise_has_all_of_it() -> None:
    env = Series(3000, seed=1)
    *_, returns = live(env, 96)
    low, high = Series.SCORE
    assert float(returns.mean()) == pytest.approx(low, abs=0.02)
    obs, _ = env.reset()
    pattern = pattern_of(0, 24)
    for _ in range(96):
        phase = obs[:, 1].long()
        best = pattern[(phase + 1) % 24] + 0.8 * (obs[:, 0] - pattern[phase])
        obs, _, _, _, info = env.step(best.unsqueeze(1))
    assert float(info["episode_return"].mean()) == pytest.approx(high, abs=0.005)


def test_patterns_differ_by_copy_and_survive_a_restart() -> None:
    env = Series(2, noise=0.0, pattern=[1, 2], seed=0)
    seen, *_ = live(env, 10)
    for copy, seed in ((0, 1), (1, 2)):
        assert torch.equal(seen[:, copy, 0], pattern_of(seed, 24)[seen[:, copy, 1].long()])
    other = Series(2)
    other.load_state_dict(env.state_dict())
    zero = torch.zeros(2, 1)
    assert torch.equal(other.step(zero)[0], env.step(zero)[0])
