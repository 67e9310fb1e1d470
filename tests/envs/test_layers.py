"""Wrappers of native environments do what Gymnasium's do with one copy, and keep the contract."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation, RepeatAction

from lifelong.envs.base import BatchedEnv
from lifelong.envs.border import Restarts
from lifelong.envs.compiled import CompiledEnv
from lifelong.envs.errors import EnvError
from lifelong.envs.tasks import Task, environment_class, wrapped_class
from lifelong.envs.wrappers.layer import Layer


class Halved(Layer):
    """A wrapper of a user's own: rewards are halved."""

    def advance(self, state: Any, action: torch.Tensor) -> Any:
        following, reward, terminated, info = super().advance(state, action)
        return following, reward / 2, terminated, info


def make(kind: str, wrappers: list[Any], copies: int = 4, **options: Any) -> BatchedEnv:
    spec = {"kind": kind, "wrappers": wrappers, **options}
    env = Task.from_spec("it", spec, 100).build(copies, Restarts(), seed=1)
    env.reset(seed=3)
    return env


class Playback(gymnasium.Env[Any, Any]):
    """One copy of a native environment, as Gymnasium has it."""

    def __init__(self, env: BatchedEnv) -> None:
        self.env = env
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.env.reset(seed=seed)[0][0].numpy(), {}

    def step(self, action: Any) -> Any:
        _, reward, terminated, truncated, info = self.env.step(torch.as_tensor(np.asarray([action])))
        return info["final_obs"][0].numpy(), float(reward), bool(terminated), bool(truncated), {}


@pytest.mark.parametrize("kind", ["CartPole", "Pendulum", "Breakout", "RepeatFirst"])
def test_stacked_frames_are_those_of_gymnasium(kind: str) -> None:
    ours = make(kind, [{"kind": "frame_stack", "frames": 3}], copies=1)
    theirs = FrameStackObservation(Playback(environment_class(kind)(1)), 3, padding_type="reset")
    obs, _ = ours.reset(seed=5)
    expected, _ = theirs.reset(seed=5)
    ours.action_space.seed(0)
    for _ in range(40):
        frames = np.concatenate(list(expected), -1)
        np.testing.assert_array_equal(obs[0].numpy(), frames)
        assert ours.single_observation_space.contains(obs[0].numpy())
        action = ours.action_space.sample()
        _, _, terminated, truncated, info = ours.step(torch.as_tensor(action))
        expected = theirs.step(action[0])[0]
        obs = info["final_obs"]
        if terminated | truncated:
            break


@pytest.mark.parametrize("kind", ["CartPole", "Pendulum"])
def test_a_repeated_action_has_the_rewards_and_ends_of_gymnasium(kind: str) -> None:
    ours = make(kind, [{"kind": "action_repeat", "times": 3}], copies=1)
    theirs = RepeatAction(Playback(environment_class(kind)(1)), 3)
    ours.reset(seed=5)
    theirs.reset(seed=5)
    ours.action_space.seed(0)
    for step in range(60):
        action = ours.action_space.sample()
        _, reward, terminated, _, info = ours.step(torch.as_tensor(action))
        obs, wanted, ended, _, _ = theirs.step(action[0])
        assert float(reward) == pytest.approx(wanted) and bool(terminated) == ended
        if ended:  # an environment of one copy has begun anew
            assert step > 1
            break
        np.testing.assert_allclose(info["final_obs"][0].numpy(), obs, rtol=1e-6)


def test_a_sticky_action_is_the_one_before_as_often_as_asked_and_never_first() -> None:
    env = make("CartPole", [{"kind": "sticky_actions", "probability": 0.25}], copies=4000)
    first = torch.randint(2, (4000,))
    env.step(first)
    assert torch.equal(env.state.taken, first)
    other = 1 - first
    env.step(other)
    assert (env.state.taken == first).float().mean() == pytest.approx(0.25, abs=0.03)
    env.reset()
    env.step(other)
    assert torch.equal(env.state.taken, other)


@pytest.mark.parametrize(
    ("kind", "wrappers"),
    [
        ("CartPole", ["sticky_actions", {"kind": "frame_stack", "frames": 2}]),
        ("Pendulum", [{"kind": "action_repeat", "times": 2}, "sticky_actions"]),
        ("Breakout", ["frame_stack", {"kind": "action_repeat", "times": 2}]),
        ("CartPole", [f"{__name__}:Halved"]),
    ],
)
def test_what_is_wrapped_compiles_and_goes_on_from_its_state_bit_for_bit(kind: str, wrappers: list[Any]) -> None:
    env = make(kind, wrappers)
    env.action_space.seed(0)
    for _ in range(15):
        env.step(torch.as_tensor(env.action_space.sample()))
    assert isinstance(env._compiled_env, CompiledEnv)
    other = make(kind, wrappers)
    other.load_state_dict(env.state_dict())
    for _ in range(15):
        action = torch.as_tensor(env.action_space.sample())
        got, wanted = other.step(action), env.step(action)
        assert all(torch.equal(a, b) for a, b in zip(got[:4], wanted[:4], strict=True))


def test_a_wrapper_of_the_users_own_is_inside_of_those_that_follow() -> None:
    env = make("CartPole", [f"{__name__}:Halved", {"kind": "action_repeat", "times": 2}])
    assert env.step(torch.zeros(4, dtype=torch.int64))[1].tolist() == [1.0] * 4  # 2 x 0.5


@pytest.mark.parametrize(
    ("kind", "wrappers", "sentence"),
    [
        ("CartPole", ["frame_stak"], "did you mean 'frame_stack'"),
        ("CartPole", ["NormalizeObservation"], "policy.normalize_observations"),
        ("CartPole", ["NormalizeReward"], "strategy: normalize_rewards"),
        ("CartPole", [{"kind": "frame_stack", "frams": 2}], "did you mean 'frames'"),
        ("CartPole", [{"kind": "frame_stack", "frames": 0}], "at least 1"),
        ("CartPole", ["sticky_actions", "sticky_actions"], "listed twice"),
        ("CartPole", "frame_stack", "must be a list"),
        ("CartPole", ["json:JSONDecoder"], "no subclass of lifelong.envs.wrappers.layer.Layer"),
        ("Copy", ["action_repeat"], "predictions"),
        ("envpool", ["frame_stack"], "options in kwargs"),
    ],
)
def test_a_wrapper_that_cannot_be_is_one_sentence(kind: str, wrappers: Any, sentence: str) -> None:
    with pytest.raises(EnvError, match=sentence):
        Task.from_spec("it", {"kind": kind, "wrappers": wrappers}, 100)


def test_environments_in_the_same_wrappers_are_one_class() -> None:
    options = {"wrappers": [{"kind": "frame_stack", "frames": 2}]}
    classes = {wrapped_class(environment_class("CartPole"), options)[0] for _ in range(3)}
    assert len(classes) == 1
