"""Python's and numpy's global randomness, which environments of others draw from."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from tests.agent.support import make_trainer


class Dice(gymnasium.Env[Any, Any]):
    """Draws its rewards from both."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), random.random() + 10 * float(np.random.rand()), False, False, {}


gymnasium.register("tests/Dice-v0", entry_point=Dice, max_episode_steps=1000)


def rewards(trainer: Any, chunks: int) -> torch.Tensor:
    return torch.stack([trainer.advance().chunk.reward for _ in range(chunks)])


def test_it_is_seeded_saved_and_not_disturbed_by_evaluation(tmp_path: Path) -> None:
    stream = {"tasks": [{"name": "t", "env": {"kind": "gymnasium", "id": "tests/Dice-v0"}}]}
    first = make_trainer(tmp_path / "a", stream=stream)
    before, saved = rewards(first, 2), copy.deepcopy(first.state_dict())
    once = first.evaluator.evaluate(first.context(), [])
    after = rewards(first, 2)
    assert np.array_equal(first.evaluator.evaluate(first.context(), []), once)
    second = make_trainer(tmp_path / "b", stream=stream)
    assert torch.equal(rewards(second, 2), before)
    second.load_state_dict(saved)
    assert torch.equal(rewards(second, 2), after)
