"""WaterMaze: the platform stays where it is, and who knows the way needs as many steps as it is away."""

from __future__ import annotations

import pytest
import torch

from lifelong.envs.memory.water_maze import WaterMaze


def test_who_knows_the_way_needs_as_many_steps_as_the_platform_is_away() -> None:
    env = WaterMaze(300, size=7, max_episode_steps=60, seed=0)
    env.reset()
    platform = env.state.platform.clone()
    left = (env.state.place - platform).abs().sum(1)
    assert int(left.min()) > 0
    total = torch.zeros(300)
    for _ in range(59):
        shown = env.observe(env.state)
        assert torch.equal(shown[:, :7].argmax(1), env.state.place[:, 0])
        assert torch.equal(shown[:, 7:14].argmax(1), env.state.place[:, 1])
        assert torch.equal(shown[:, 14], (left == 0).float())
        moved = left == 0  # put elsewhere
        reward = env.step(env.oracle(env.state))[1]
        assert torch.equal(env.state.platform, platform)
        away = (env.state.place - platform).abs().sum(1)
        assert bool((away[moved] > 0).all())
        left = torch.where(moved, away, left - 1)
        assert torch.equal(left, away) and torch.equal(reward, (left == 0).float())
        total += reward
    assert total.mean() > 8


def test_places_are_even_and_walls_hold() -> None:
    env = WaterMaze(90_000, size=3, seed=1)
    env.reset()
    where = 9 * (3 * env.state.platform[:, 0] + env.state.platform[:, 1])
    where += 3 * env.state.place[:, 0] + env.state.place[:, 1]
    counts = torch.bincount(where, minlength=81).view(9, 9)
    assert int(counts.diagonal().sum()) == 0
    others = counts[~torch.eye(9, dtype=torch.bool)]
    assert others.min() > 1250 * 0.88 and others.max() < 1250 * 1.12
    env = WaterMaze(4, size=5, seed=1)
    env.reset()
    env.state.platform[:] = torch.tensor([2, 2])
    env.state.place[:] = torch.tensor([[0, 0], [0, 4], [4, 4], [4, 0]])
    env.step(torch.tensor([2, 1, 3, 0]))  # up, right, down, left
    assert env.state.place.tolist() == [[0, 0], [0, 4], [4, 4], [4, 0]]


def test_the_score_is_that_of_random_actions_and_of_who_knows_the_way() -> None:
    for which, wanted in enumerate(WaterMaze.SCORE):
        env = WaterMaze(3000, seed=0)
        env.reset()
        generator = torch.Generator().manual_seed(0)
        total = 0.0
        for _ in range(100):
            random = torch.randint(4, (3000,), generator=generator)
            total += float(env.step(env.oracle(env.state) if which else random)[1].mean())
        assert total == pytest.approx(wanted, abs=0.1)
