"""Adding, FlipFlop, AssociativeRecall and DelayedMatch: the truth is what a reader of the observations works out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong.envs.base import BatchedEnv
from lifelong.envs.errors import EnvError
from lifelong.envs.memory.delayed_match import DelayedMatch
from lifelong.envs.prediction.adding import Adding
from lifelong.envs.prediction.associative_recall import AssociativeRecall
from lifelong.envs.prediction.flip_flop import FlipFlop


def episode(env: BatchedEnv, steps: int, action: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """What is seen [T, B, ...], the truth and its mask of every step, and the returns of one episode."""
    obs, _ = env.reset()
    seen, truth, mask = [], [], []
    for t in range(steps):
        seen.append(obs)
        obs, _, terminated, _, info = env.step(action)
        truth.append(info.get("target"))
        mask.append(info.get("target_mask"))
        assert bool((terminated == (t == steps - 1)).all())
    return torch.stack(seen), truth, mask, info["episode_return"]


def test_adding_is_the_sum_of_what_was_marked_once_in_either_half() -> None:
    env = Adding(400, length=9, seed=0)
    seen, truth, mask, returns = episode(env, 9, torch.full((400, 1), 1.0))
    marks = seen[..., 1]
    assert bool((marks[:4].sum(0) == 1).all()) and bool((marks[4:].sum(0) == 1).all())
    assert bool((marks.sum(1) > 0).all())  # anywhere
    total = (seen[..., 0] * marks).sum(0)
    torch.testing.assert_close(truth[-1].squeeze(1), total)
    assert bool(mask[-1].all()) and not torch.stack(mask[:-1]).any()
    torch.testing.assert_close(returns, -(1 - total).square())
    assert abs(float(returns.mean()) + 1 / 6) < 0.03  # the score's lower end


def test_a_flip_flop_remembers_the_last_pulse_of_every_channel() -> None:
    env = FlipFlop(300, bits=2, length=40, rate=0.25, seed=0)
    seen, truth, _, returns = episode(env, 40, torch.ones(300, 2, dtype=torch.int64))
    last = torch.zeros(300, 2)
    for t in range(40):
        last = torch.where(seen[t] != 0, seen[t], last)
        assert torch.equal(truth[t], (last > 0).long())
    assert bool((seen[0] != 0).all())
    assert abs(float((seen[1:] != 0).float().mean()) - 0.25) < 0.01
    torch.testing.assert_close(returns, torch.stack(truth).float().mean((0, 2)))


def test_a_pulse_alone_is_worth_half_its_rate() -> None:
    env = FlipFlop(200, length=200, rate=0.2, seed=1)
    obs, _ = env.reset()
    for _ in range(200):
        guess = torch.where(obs != 0, obs, torch.randint_like(obs, 2) * 2 - 1)
        obs, _, _, _, info = env.step((guess > 0).long())
    assert abs(float(info["episode_return"].mean()) - 0.6) < 0.01


def test_the_value_of_the_key_that_comes_again_is_asked_for() -> None:
    env = AssociativeRecall(500, keys=6, values=4, pairs=5, seed=0)
    seen, truth, mask, returns = episode(env, 12, torch.zeros(500, dtype=torch.int64))
    keys, values, sign, query = seen[0:10:2], seen[1:10:2], seen[10], seen[11]
    assert bool((keys < 6).all()) and bool(((values >= 6) & (values < 10)).all()) and bool((sign == 10).all())
    assert all(len(set(row)) == 5 for row in keys.T.tolist())
    which = keys == query
    assert bool((which.sum(0) == 1).all())
    right = (values * which).sum(0) - 6
    assert torch.equal(truth[-1], right) and bool(mask[-1].all()) and not torch.stack(mask[:-1]).any()
    assert torch.equal(returns, (right == 0).float())
    asked = which.float().mean(1)
    assert bool(((asked - 0.2).abs() < 0.06).all())  # every pair as often
    firsts = torch.bincount(keys[1], minlength=6) / 500
    assert bool(((firsts - 1 / 6).abs() < 0.06).all())


def test_more_pairs_than_keys_are_refused() -> None:
    with pytest.raises(EnvError, match="pairs is 7, above keys, 6; set keys to 7"):
        AssociativeRecall(keys=6, pairs=7)


@pytest.mark.parametrize("nonmatch", [0, 1])
def test_the_side_of_the_sample_is_right_or_the_other_one(nonmatch: int) -> None:
    env = DelayedMatch(300, symbols=3, delay=4, nonmatch=nonmatch, impatience=0.25, seed=0)
    obs, _ = env.reset()
    sample, right = obs[:, :3].argmax(1), obs.view(300, 2, 3)
    assert torch.equal(right[:, 0], right[:, 1]) and bool((right.sum(2) == 1).all())
    for t in range(5):
        obs, reward, terminated, _, _ = env.step(torch.full((300,), t % 2))
        assert bool((reward == (-0.25 if t % 2 else 0.0)).all()) and not terminated.any()
        assert bool((obs.sum(1) == (2 if t == 4 else 0)).all())
    sides = obs.view(300, 2, 3).argmax(2)
    assert bool((sides[:, 0] != sides[:, 1]).all())
    matching = (sides == sample.unsqueeze(1)).float().argmax(1)
    answer = 1 + (matching + nonmatch) % 2
    answer[200:] = 0  # waiting
    answer[100:200] = 3 - answer[100:200]  # the other side
    _, reward, terminated, _, info = env.step(answer)
    assert bool(terminated.all())
    assert reward.tolist() == [1.0] * 100 + [-1.0] * 200
    assert info["success"].tolist() == [1.0] * 100 + [0.0] * 200
