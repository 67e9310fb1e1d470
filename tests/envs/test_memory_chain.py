"""MemoryChain is bsuite's: the same observations, rewards and ends, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lifelong.envs.memory.memory_chain import MemoryChain


def by_the_rules(
    length: int, context: list[int], query: int, actions: list[int]
) -> Iterator[tuple[list[float], float, bool]]:
    """Observation, reward and end after every action, as `bsuite.environments.memory_chain` computes them: the time
    goes on after the observation was made, so that the second one is of time 0 again."""
    time = 0
    for action in actions:
        obs = [1 - time / length, float(query) if time == length - 1 else 0.0]
        obs += [2.0 * bit - 1 if time == 0 else 0.0 for bit in context]
        time += 1
        if time - 1 < length:
            yield obs, 0.0, False
            continue
        yield obs, 1.0 if action == context[query] else -1.0, True
        return


@pytest.mark.parametrize(("length", "bits"), [(1, 1), (2, 1), (7, 1), (5, 4)])
def test_it_follows_the_published_rules(length: int, bits: int) -> None:
    env = MemoryChain(16, length=length, bits=bits, seed=3)
    first, _ = env.reset()
    actions = torch.randint(2, (length + 1, 16), generator=torch.Generator().manual_seed(0))
    contexts, queries = env.state.context.tolist(), env.state.query.tolist()
    assert len(set(map(tuple, contexts))) > 1
    expected = [
        list(by_the_rules(length, c, q, actions[:, b].tolist()))
        for b, (c, q) in enumerate(zip(contexts, queries, strict=True))
    ]
    for b, context in enumerate(contexts):
        assert first[b].tolist() == pytest.approx(
            [1.0, 0.0 if length > 1 else float(queries[b]), *(2 * x - 1 for x in context)]
        )
    for t in range(length + 1):
        _, reward, terminated, truncated, info = env.step(actions[t])
        for b in range(16):
            seen, given, ends = expected[b][t]
            assert info["final_obs"][b].tolist() == pytest.approx(seen, abs=1e-6), (t, b)
            assert float(reward[b]) == given and bool(terminated[b]) == ends
        assert not truncated.any()
    assert terminated.all()


def _original() -> ModuleType:
    return pytest.importorskip("bsuite.environments.memory_chain")


@pytest.mark.parametrize(("length", "bits"), [(3, 1), (9, 3)])
def test_it_equals_the_original(length: int, bits: int) -> None:
    original: Any = _original().MemoryChain(length, bits, seed=1)
    env, draw = MemoryChain(1, length=length, bits=bits), np.random.default_rng(0)
    for _ in range(20):
        step = original.reset()
        env.reset()
        state = type(env.state)
        env.state = state(
            torch.as_tensor(original._context)[None].long(), torch.tensor([original._query]), torch.zeros(1).long()
        )
        np.testing.assert_allclose(env.observe(env.state)[0], step.observation[0], atol=1e-6)
        while not step.last():
            action = int(draw.integers(2))
            step = original.step(action)
            _, reward, terminated, _, info = env.step(torch.tensor([action]))
            np.testing.assert_allclose(info["final_obs"][0], step.observation[0], atol=1e-6)
            assert float(reward) == step.reward and bool(terminated) == step.last()


def test_who_remembers_earns_one_and_who_guesses_nothing() -> None:
    env = MemoryChain(2000, length=4, seed=0)
    obs, _ = env.reset()
    bit = (obs[:, 2] > 0).long()
    for _ in range(5):
        _, reward, terminated, _, _ = env.step(bit)
    assert terminated.all() and (reward == 1).all()
    for _ in range(5):
        _, reward, _, _, _ = env.step(torch.ones(2000, dtype=torch.int64))
    assert abs(float(reward.mean())) < 0.08
