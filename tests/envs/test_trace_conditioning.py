"""TraceConditioning: intervals of the protocol, and a truth that is the return of what is observed afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.envs.prediction.trace_conditioning import TraceConditioning


def lived(isi: int, copies: int, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:
    """Observations [T + 1, B, 2], targets [T, B], rewards [T, B] of predictions [T, B]."""
    env = TraceConditioning(copies, isi=isi, seed=seed, max_episode_steps=10 * steps)
    obs, _ = env.reset()
    seen, targets, rewards = [obs], [], []
    said = torch.randn(steps, copies, generator=torch.Generator().manual_seed(1))
    for t in range(steps):
        obs, reward, terminated, truncated, info = env.step(said[t].unsqueeze(1))
        assert not (terminated | truncated).any() and info["target_mask"].all()
        seen.append(obs)
        targets.append(info["target"].squeeze(1))
        rewards.append(reward * 10 * steps)
    return torch.stack(seen).numpy(), torch.stack(targets).numpy(), torch.stack(rewards).numpy(), said


def runs(on: np.ndarray) -> list[tuple[int, int]]:
    """First step and length of every run of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on, [0]])))
    return [(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("isi", [10, 20, 40])
def test_the_intervals_are_those_of_the_protocol(isi: int) -> None:
    seen, *_ = lived(isi, 6, 4000)
    intervals, pauses = [], []
    for b in range(6):
        cs, us = runs(seen[:, b, 0]), runs(seen[:, b, 1])
        assert len(us) > 20 and len(cs) - len(us) in (0, 1) and cs[0][0] < 8
        assert {length for _, length in cs[1:-1]} == {4} and {length for _, length in us[:-1]} == {2}
        intervals += [u - c for (c, _), (u, _) in zip(cs, us, strict=False)]
        pauses += [c - u - 2 for (c, _), (u, _) in zip(cs[1:], us, strict=False)]
    assert (min(intervals), max(intervals)) == (isi - isi // 3, isi + isi // 3)
    assert (
        abs(np.mean(intervals) - isi) < 1.5
        and abs(np.std(intervals) - np.sqrt(((2 * (isi // 3) + 1) ** 2 - 1) / 12)) < 1
    )
    assert min(pauses) in range(80, 84) and max(pauses) in range(117, 121) and abs(np.mean(pauses) - 100) < 4


@pytest.mark.parametrize("isi", [6, 20, 40])
def test_the_truth_is_the_return_of_what_is_observed(isi: int) -> None:
    """Within what lies beyond the horizon of 400 steps."""
    seen, targets, rewards, said = lived(isi, 3, 1400)
    gamma = 1 - 1 / isi
    returns = np.zeros((1401, 3))
    for t in reversed(range(1400)):
        returns[t] = seen[t + 1, :, 1] + gamma * returns[t + 1]
    np.testing.assert_allclose(targets[:1000], returns[:1000], atol=2 * gamma**400 + 1e-4)
    assert 1.5 < targets.max() < 2.5 and targets.min() >= 0
    np.testing.assert_allclose(rewards, -((said.numpy() - targets) ** 2), rtol=1e-3, atol=1e-5)


def test_every_copy_has_its_own_interval() -> None:
    env = TraceConditioning(2, isi=[6, 200], seed=0)
    env.reset()
    gaps = env.state.us - env.state.cs
    assert gaps[0].max() <= 8 and gaps[1].min() >= 134
