"""A user's own spaces, from the environment to the learner and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from torch import Tensor

from lifelong.agent.errors import ConfigError
from lifelong.agent.runtime.trainer import Trainer
from lifelong.envs.base import BatchedEnv
from tests.agent.support import make_trainer

PIXELS = Box(0, 255, (6, 6, 3), np.uint8)


class Told(gymnasium.Env[Any, Any]):
    """Shows one value for ever; the reward says how far from 3/4 of its range the first number of the action is."""

    taken: ClassVar[list[Any]] = []

    def __init__(self, observation: Space[Any], action: Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken.append(action)
        reward = 0.0
        if isinstance(self.action_space, Box) and self.action_space.is_bounded():
            low, high = (float(np.ravel(x)[0]) for x in (self.action_space.low, self.action_space.high))
            reward = 1 - 2 * abs((float(np.ravel(action)[0]) - low) / (high - low) - 0.75)
        return self.observation_space.sample(), reward, False, False, {}


gymnasium.register("tests/Told-v0", entry_point=Told, max_episode_steps=3)


def told(folder: Path, observation: Space[Any], action: Space[Any], **changes: Any) -> Trainer:
    Told.taken.clear()
    spaces = {"observation": observation, "action": action}
    tasks = [{"name": "t", "env": {"kind": "gymnasium", "id": "tests/Told-v0", "kwargs": spaces}}]
    policy = {"encoder": {"kind": "mlp", "hidden": [8]}, "previous_action": True, **changes.pop("policy", {})}
    return make_trainer(folder, stream={"tasks": tasks}, policy=policy, gradient="bptt", **changes)


@pytest.mark.parametrize(
    "space",
    [
        Discrete(3, start=5),
        MultiDiscrete([3, 2], start=np.array([10, -1])),
        MultiBinary(3),
        Box(0, 1000, (2,), np.float32),
        Box(-2, 2, (2, 2), np.float64),
        Box(-3, 3, (2,), np.int64),
        Box(0, 2, (), np.float32),
        Box(-np.inf, np.inf, (1,), np.float32),
    ],
    ids=str,
)
def test_policies_act_in_the_space_of_the_environment(space: Space[Any], tmp_path: Path) -> None:
    trainer = told(tmp_path, Box(-1, 1, (2,), np.float32), space)
    trainer.advance()
    trainer.evaluator.evaluate(trainer.context(), [])
    assert len(Told.taken) >= 32
    for action in Told.taken:
        assert space.contains(
            np.asarray(action, space.dtype) if space.shape == () and isinstance(space, Box) else action
        )
    assert len({str(action) for action in Told.taken}) > 1


@pytest.mark.parametrize("squash", ["none", "tanh"])
def test_what_is_learned_does_not_depend_on_the_bounds_of_the_action(squash: str, tmp_path: Path) -> None:
    learned = []
    for low, high in ((-1, 1), (0, 1000), (-0.01, 0.01)):
        space = Box(low, high, (1,), np.float32)
        observation = Box(-1, 1, (2,), np.float32)
        trainer = told(tmp_path / str(high), observation, space, objective="ppo", policy={"squash": squash})
        rewards = []
        for _ in range(3):
            experience = trainer.advance()
            assert experience is not None
            rewards.append(experience.chunk.reward)
        learned.append((torch.stack(rewards), trainer.rollout.policy.critic.weight.detach().clone()))
    for rewards, weight in learned[1:]:
        torch.testing.assert_close(rewards[0], learned[0][0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rewards, learned[0][0], rtol=0, atol=0.02)  # rounding, which Adam makes larger
        torch.testing.assert_close(weight, learned[0][1], rtol=0, atol=0.02)
    assert float(learned[0][0].std()) > 0.1


@pytest.mark.parametrize(
    ("space", "encoder"),
    [
        (Box(-1, 1, (), np.float32), "mlp"),
        (Box(-1, 1, (2, 2), np.float64), "identity"),
        (Box(-9, 9, (2,), np.int64), "mlp"),
        (Box(0, 255, (6,), np.uint8), "mlp"),
        (Dict({"image": PIXELS, "x": Box(-1, 1, (2,)), "n": Discrete(3, start=2)}), "mlp"),
        (Tuple((PIXELS, MultiBinary(2), MultiDiscrete([2, 3]))), "identity"),
        (PIXELS, "mlp"),
        (PIXELS, "cnn"),
        (Box(0, 255, (6, 6), np.uint8), "cnn"),
        (Box(0, 255, (4, 6, 6, 3), np.uint8), {"kind": "cnn", "layout": "nhwc"}),
    ],
    ids=str,
)
def test_observations_of_any_space_reach_the_policy_in_the_unit_range(
    space: Space[Any], encoder: Any, tmp_path: Path
) -> None:
    trainer = told(tmp_path, space, Discrete(2), policy={"encoder": encoder, "previous_action": False})
    experience = trainer.advance()
    assert experience is not None
    read = trainer.rollout.policy.encoder.prepare(experience.chunk.obs)
    assert read.dtype == torch.float32 and read.shape[:2] == (4, 8)
    if getattr(space, "dtype", None) != np.int64:
        assert 0.2 < float(read.abs().max()) <= 1.0
    assert int(torch.unique(read).numel()) > 2


def test_images_whose_axes_can_be_read_in_two_ways_are_refused_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set layout to chw or hwc"):
        told(tmp_path, Box(0, 255, (9, 6, 9), np.uint8), Discrete(2), policy={"encoder": "cnn"})


def test_squashed_actions_of_unbounded_spaces_are_refused_before_the_start(tmp_path: Path) -> None:
    unbounded = Box(-np.inf, np.inf, (1,), np.float32)
    with pytest.raises(ConfigError, match=r"policy.squash is tanh"):
        told(tmp_path, Box(-1, 1, (2,), np.float32), unbounded, policy={"squash": "tanh"})


@dataclass(frozen=True)
class Counted:
    """`n` int64 [B]: steps of the episode."""

    n: Tensor


class Reusing(BatchedEnv):
    """Counts steps in one buffer that it fills again and again, of another kind of number than it says."""

    MAX_EPISODE_STEPS: ClassVar[int] = 8

    def spaces(self) -> tuple[Space[Any], Space[Any]]:
        self.buffer = torch.zeros(self.num_envs, 2, dtype=torch.float64)
        return Box(0.0, 9.0, (2,)), Discrete(2)

    def draw_state(self) -> Counted:
        return Counted(torch.zeros(self.num_envs, dtype=torch.int64))

    def observe(self, state: Counted) -> Tensor:
        self.buffer[:] = state.n.unsqueeze(1)
        return self.buffer

    def advance(self, state: Counted, action: Tensor) -> tuple[Counted, Tensor, Tensor, dict[str, Tensor]]:
        return Counted(state.n + 1), torch.ones(self.num_envs), torch.zeros(self.num_envs, dtype=torch.bool), {}


def test_a_chunk_holds_what_was_seen_though_the_environment_fills_one_buffer(tmp_path: Path) -> None:
    tasks = [{"name": "t", "env": {"kind": "tests.agent.runtime.test_spaces:Reusing"}}]
    trainer = make_trainer(tmp_path, stream={"tasks": tasks}, rollout={"copies": 4, "steps": 8})
    for _ in range(3):  # also when nobody looks any more
        experience = trainer.rollout.collect(8)
        assert experience.chunk.obs[:, 0, 0].tolist() == [float(t) for t in range(8)]
        assert experience.chunk.obs.dtype == torch.float32
