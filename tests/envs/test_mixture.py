"""A mixture of Gaussians: the nearest centre is right as often as it should be, and a regime has other centres."""

from __future__ import annotations

import torch

from lifelong.envs.prediction.gaussian_mixture import GaussianMixture


def accuracy(env: GaussianMixture, centres: torch.Tensor, steps: int = 60) -> float:
    """Of the class of the nearest centre, by the rewards of the environment."""
    obs, total = env.reset(seed=0)[0], 0.0
    for _ in range(steps):
        answer = torch.cdist(obs.unsqueeze(1), centres).squeeze(1).argmin(1) // env.components
        obs, reward, _, _, info = env.step(answer)
        assert torch.equal(reward > 0, answer == info["target"]) and bool(info["target_mask"].all())
        total += float(reward.mean()) * env.length
    return total / steps


def test_the_nearest_centre_is_right_in_98_of_100_cases_and_that_of_another_regime_is_chance() -> None:
    env = GaussianMixture(100, regime=3)
    assert abs(accuracy(env, env.centres_BKD.clone()) - 0.983) < 0.012
    before = env.centres_BKD.clone()
    env.set_params(regime=4)
    assert abs(accuracy(env, before) - 0.1) < 0.03


def test_points_have_their_centre_and_unit_variance_whatever_the_copy() -> None:
    env = GaussianMixture(4000, dim=3, classes=2, components=2, spread=2.0)
    obs, _ = env.reset(seed=1)
    for part in range(4):
        mine = obs[env.state.part == part]
        assert torch.allclose(mine.mean(0), env.centres_BKD[0, part], atol=0.12)
        assert torch.allclose(mine.std(0), torch.ones(3), atol=0.1)
    assert torch.bincount(env.state.part).min() > 850


def test_the_return_of_an_episode_is_its_accuracy() -> None:
    env = GaussianMixture(8, dim=4, length=25)
    env.reset(seed=2)
    right = torch.zeros(8)
    for t in range(25):
        _, _, terminated, _, info = env.step(torch.zeros(8, dtype=torch.int64))
        right += (info["target"] == 0).float()
        assert bool(terminated.all()) == (t == 24)
    assert torch.allclose(info["episode_return"], right / 25, atol=1e-6)
