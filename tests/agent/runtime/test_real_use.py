"""Environments that people have, of different kinds, through a stream of two tasks with a strategy."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple

from lifelong.agent.cli import main
from lifelong.agent.runtime.metrics import Evaluations
from tests.agent.support import make_trainer, run


class Goal(gymnasium.Env[Any, Any]):
    """As goal environments have it: a Dict of observation, what is achieved and what is desired."""

    def __init__(self) -> None:
        place = Box(-1, 1, (2,), np.float64)
        self.observation_space = Dict({"observation": place, "achieved_goal": place, "desired_goal": place})
        self.action_space = Box(-0.2, 0.2, (2,), np.float32)

    def _seen(self) -> Any:
        return {"observation": self.at.copy(), "achieved_goal": self.at.copy(), "desired_goal": self.goal}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.goal = np.zeros(2), self.np_random.uniform(-1, 1, 2)
        return self._seen(), {"is_success": False}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.at = np.clip(self.at + action, -1, 1)
        near = bool(np.linalg.norm(self.at - self.goal) < 0.1)
        return self._seen(), float(near) - 1, near, False, {"is_success": near}


class Picture(gymnasium.Env[Any, Any]):
    """Shows bytes; the side with more light is the right action."""

    def __init__(self, size: int = 16) -> None:
        self.observation_space = Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = Discrete(2)

    def _draw(self) -> Any:
        self.right = int(self.np_random.integers(2))
        shown = self.np_random.integers(100, size=self.observation_space.shape, dtype=np.uint8)
        shown[:, :8] += np.uint8(100 * (1 - self.right))
        return shown

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: Any) -> Any:
        reward = float(action == self.right)
        return self._draw(), reward, False, False, {}


class Words(gymnasium.Env[Any, Any]):
    """Says in a text which of two parts of the action counts."""

    def __init__(self, greeting: str = "go") -> None:
        self.greeting = greeting
        self.observation_space = Text(8, min_length=0, charset="abdeghlnorstu ")
        self.action_space = Tuple([Discrete(2), Discrete(3, start=1)])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return f"{self.greeting} {'ab'[int(self.np_random.integers(2))]}", {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return f"{self.greeting} b", float(action[1] == 3), False, False, {}


class Halves(gymnasium.RewardWrapper[Any, Any]):
    """A wrapper of a user's own."""

    def reward(self, reward: Any) -> float:
        return float(reward) / 2


for _name, _kind in (("Goal", Goal), ("Picture", Picture), ("Words", Words)):
    gymnasium.register(f"tests/Real{_name}-v0", entry_point=_kind, max_episode_steps=10)

TAXI = "Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3"
LIMIT = {"kind": "TimeLimit", "max_episode_steps": 12}
RESCALED = {"kind": "RescaleAction", "min_action": -1.0, "max_action": 1.0}
KINDS: dict[str, dict[str, Any]] = {
    "vector": {"id": "CartPole-v1"},
    "continuous": {"id": "Pendulum-v1", "wrappers": [LIMIT, "NormalizeObservation", RESCALED]},
    "keyword arguments": {"id": "FrozenLake-v1", "kwargs": {"map_name": "8x8", "is_slippery": False}},
    "Tuple observations": {"id": "Blackjack-v1", "kwargs": {"sab": True}},
    "masked actions": {"id": TAXI, "wrappers": [LIMIT]},
    "integer observations": {"id": "CliffWalking-v1", "wrappers": [LIMIT]},
    "continuous car": {"id": "MountainCarContinuous-v0", "wrappers": [LIMIT, RESCALED]},
    "own wrapper": {"id": "Acrobot-v1", "wrappers": [LIMIT, f"{__name__}:Halves"]},
    "time as a part": {
        "id": "CartPole-v1",
        "wrappers": ["TimeAwareObservation", {"kind": "irregular", "gaps": [1, 2]}],
    },
    "goal": {"id": "tests/RealGoal-v0"},
    "image": {"id": "tests/RealPicture-v0"},
    "text and Tuple actions": {"id": f"{__name__}:tests/RealWords-v0", "kwargs": {"greeting": "hello"}},
    "own vector form": {"id": "CartPole-v1", "vectorization": "vector_entry_point"},
    "processes": {"id": "CartPole-v1", "vectorization": "async", "wrappers": [LIMIT]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_of_any_kind_goes_through_a_stream_with_a_strategy(kind: str, tmp_path: Path) -> None:
    env = {"kind": "gymnasium", **KINDS[kind]}
    tasks = [{"name": "one", "env": env}, {"name": "two", "env": env, "reward_scale": 0.1}]
    trainer = make_trainer(
        tmp_path,
        stream={"tasks": tasks, "steps_per_task": 64},
        policy={"encoder": "cnn" if kind == "image" else {"kind": "mlp", "hidden": [8]}, "previous_action": True},
        strategy="clear",
        evaluation={"every": 10_000, "episodes": 2, "max_steps": 15},
    )
    run(trainer)
    assert trainer.step == 128 and trainer.ended == 1
    assert all(np.isfinite(returns).all() for returns in trainer.evaluations.returns)
    assert all(math.isfinite(float(p.detach().sum())) for p in trainer.rollout.policy.parameters())
    trainer.close()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="the package envpool is missing")
@pytest.mark.parametrize("name", ["cw10", "cora_atari", "cora_procgen", "minigrid_memory"])
def test_a_named_stream_starts_from_the_command_line_and_runs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = 10_000 if name == "minigrid_memory" else 2_000 if name == "cw10" else 3_334
    short = [f"stream.steps_per_task={steps}", "stream.cycles=1", "evaluation.every=1_000_000_000"]
    short += ["evaluation.episodes=2", "evaluation.max_steps=20", "--quiet", "--out", str(tmp_path / "run")]
    code = main(["run", name, *short])
    if code == 2 and name == "cora_procgen":
        assert "Qt 5" in capsys.readouterr().err  # the package of the system that is missing
        pytest.skip("the system has no Qt 5")
    assert code == 0
    saved = Evaluations.load(tmp_path / "run" / "evaluation.npz")
    assert saved.steps[-1] >= 20_000 and all(saved.scored)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["name"] == name
