"""Environments of other people go on from a saved state as if nothing had happened."""

from __future__ import annotations

import importlib.util
import io
import logging
import random
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from lifelong.agent.runtime import checkpoint
from lifelong.envs.adapters.gymnasium import GymnasiumEnv
from lifelong.envs.adapters.saved import CannotSave, set_state, state_of
from tests.agent.support import make_trainer, run


class Thing:
    """An object that is made while an episode lasts."""

    def __init__(self, place: int) -> None:
        self.place = place


class Full(gymnasium.Env[Any, Any]):
    """Has a little of everything in its state, some of it shared, and objects that come and go."""

    observation_space = Box(-1e6, 1e6, (4,), np.float64)
    action_space = Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        self.other, self.legacy = random.Random(drawn), np.random.RandomState(drawn)
        self.grid = np.zeros((3, 3), np.int16)
        self.row = self.grid[1]  # shares memory
        self.recent: deque[float] = deque([0.0], maxlen=3)
        self.things: dict[Any, Any] = {("a", 1): Thing(0)}
        self.newest = self.things["a", 1]  # the same object
        self.tensor = torch.zeros(2)
        self.seen, self.rule, self.count = {1}, max, np.int64(0)
        return self._observe(), {}

    def _observe(self) -> Any:
        return np.array([self.grid.sum(), sum(self.recent), self.newest.place, float(self.tensor.sum())])

    def step(self, action: Any) -> Any:
        self.row[int(self.np_random.integers(3))] += 1
        self.recent.append(self.other.random() + self.legacy.rand())
        self.newest.place += int(action)
        if self.count % 4 == 3:
            self.newest = self.things["a", int(self.count)] = Thing(len(self.things))
        self.tensor += self.things["a", 1].place
        self.count += 1
        return self._observe(), float(self.recent[-1]), bool(self.np_random.random() < 0.05), False, {}


class Says(Full):
    """Says itself what its state is, and has something besides that is none."""

    def __init__(self) -> None:
        self.handle = io.BytesIO()

    def get_state(self) -> Any:
        return {name: value for name, value in vars(self).items() if name not in ("handle", "_np_random")}

    def set_state(self, state: Any) -> None:
        vars(self).update(state)
        self.row = self.grid[1]


class Opaque(Full):
    """Nobody knows the state of what it holds."""

    def __init__(self) -> None:
        self.emulator = io.BytesIO()


for _kind in (Full, Says, Opaque):
    gymnasium.register(f"tests/{_kind.__name__}-v0", entry_point=_kind, max_episode_steps=17)

IDS = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "FrozenLake-v1", "Blackjack-v1", "tests/Full-v0", "tests/Says-v0"]
if importlib.util.find_spec("ale_py"):
    gymnasium.register_envs(importlib.import_module("ale_py"))
    IDS.append("ALE/Pong-v5")


def saved_and_read(env: GymnasiumEnv) -> Any:
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_goes_on(env: GymnasiumEnv, other: GymnasiumEnv, steps: int = 60) -> None:
    assert env.exact_state and other.exact_state
    assert torch.equal(env.state.obs, other.state.obs)
    for _ in range(steps):
        action = torch.as_tensor(env.action_space.sample())
        left, right = env.step(action), other.step(action)
        assert all(torch.equal(a, b) for a, b in zip(left[:4], right[:4], strict=True))
        assert all(torch.equal(left[4][key], right[4][key]) for key in left[4])


@pytest.mark.parametrize("id", IDS)
def test_another_environment_goes_on_bit_for_bit(id: str) -> None:
    wrappers = [] if id == "tests/Full-v0" else [{"kind": "TimeLimit", "max_episode_steps": 13}]
    env = GymnasiumEnv(3, id=id, wrappers=wrappers)
    env.reset(seed=3)
    env.action_space.seed(0)
    for _ in range(20):
        env.step(torch.as_tensor(env.action_space.sample()))
    other = GymnasiumEnv(3, id=id, wrappers=wrappers)
    other.load_state_dict(saved_and_read(env))
    assert_goes_on(env, other)
    env.close()
    other.close()


def test_running_statistics_of_wrappers_are_saved_and_processes_save_too() -> None:
    stacked = {"kind": "FrameStackObservation", "stack_size": 2}
    wrappers = ["NormalizeObservation", {"kind": "NormalizeReward", "gamma": 0.9}, stacked]
    pair = [GymnasiumEnv(2, id="CartPole-v1", wrappers=wrappers, vectorization="async") for _ in range(2)]
    env, other = pair
    env.reset(seed=3)
    env.action_space.seed(0)
    for _ in range(40):
        env.step(torch.as_tensor(env.action_space.sample()))
    other.load_state_dict(saved_and_read(env))
    assert_goes_on(env, other)
    for each in pair:
        each.close()


def test_what_cannot_be_saved_is_told_once_and_starts_fresh_episodes(caplog: pytest.LogCaptureFixture) -> None:
    env = GymnasiumEnv(2, id="tests/Opaque-v0")
    env.reset(seed=3)
    with caplog.at_level(logging.WARNING, "lifelong"):
        env.state_dict()
        saved = env.state_dict()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "emulator is a _io.BytesIO" in told[0] and "fresh episodes" in told[0]
    other = GymnasiumEnv(2, id="tests/Opaque-v0")
    other.load_state_dict(saved)
    assert not env.exact_state and not other.exact_state and not other.age_B.any()


def test_no_class_is_looked_for_that_is_not_imported_and_none_is_constructed() -> None:
    env = Full()
    env.reset(seed=0)
    state = state_of(env)
    where = next(part for key, part in state[2] if key == "newest")
    assert where[0] in ("object", "met")
    for name in ("antigravity.Thing", "subprocess.Popen.nothing", "builtins.dict", "io.BytesIO"):
        with pytest.raises(CannotSave):
            set_state(env, ["object", name, []])


def test_a_run_that_is_resumed_is_the_run_that_went_through(tmp_path: Path) -> None:
    env = {"kind": "gymnasium", "id": "tests/Full-v0", "wrappers": ["NormalizeObservation"]}
    changes: dict[str, Any] = {
        "stream": {"tasks": [{"name": "full", "env": env}], "steps_per_task": 320},
        "checkpoint": {"every": 32},
    }
    through = make_trainer(tmp_path / "through", **changes)
    run(through)
    stopped = make_trainer(tmp_path / "stopped", **changes)
    run(stopped, until=160)
    stopped.close()
    resumed = make_trainer(tmp_path / "resumed", **changes)
    resumed.load_state_dict(checkpoint.load(tmp_path / "stopped" / "checkpoints")[0])
    assert resumed.step == 160 and resumed.rollout.env.exact_state
    run(resumed)
    for left, right in zip(through.rollout.policy.parameters(), resumed.rollout.policy.parameters(), strict=True):
        assert torch.equal(left, right)
    np.testing.assert_array_equal(through.evaluations.tensor()[-1], resumed.evaluations.tensor()[-1])
    through.close()
    resumed.close()
