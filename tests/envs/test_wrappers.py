"""Environments that do not wait, or are seen at irregular times, do what is said of them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env

from lifelong.envs.adapters.gymnasium import GymnasiumEnv, wrapped
from lifelong.envs.errors import EnvError
from lifelong.envs.wrappers.irregular import Irregular
from lifelong.envs.wrappers.realtime import RealTime


class Diary(gymnasium.Env[Any, Any]):
    """Writes down what is executed; the observation is the step, the reward ten times it; `length` steps."""

    def __init__(self, length: int = 1000, action_space: Any = None) -> None:
        self.observation_space = Box(-1.0, 1e6, (2,), np.float64)
        self.action_space = action_space or Discrete(100)
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.done = 0, []
        return np.array([0.0, -1.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.done.append(action)
        self.t += 1
        return np.array([self.t, -1.0]), 10.0 * self.t, self.t == self.length, False, {"own": self.t}


def lived(env: Any, actions: list[Any]) -> list[tuple[Any, ...]]:
    env.reset(seed=0)
    return [env.step(action) for action in actions]


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_an_action_arrives_so_many_steps_late_and_the_idle_one_goes_before(delay: int) -> None:
    diary = Diary()
    steps = lived(RealTime(diary, delay=delay, idle=7), list(range(20, 40)))
    assert diary.done == [7] * delay + list(range(20, 40 - delay))
    infos = [step[4] for step in steps]
    assert [info["executed_action"] for info in infos] == diary.done
    assert [info["delay"] for info in infos[delay:]] == [delay] * (20 - delay)
    assert infos[5]["own"] == 6 and steps[5][1] == 60.0
    env = RealTime(diary, delay=delay, idle=7)
    lived(env, [50, 51])
    lived(env, [60])  # nothing of an old episode is left
    assert diary.done == [7 if delay else 60]


def test_of_drawn_delays_the_newest_action_that_has_arrived_counts() -> None:
    diary = Diary()
    env = RealTime(diary, delay=1, longest=4)
    drawn: list[int] = []
    generator = env._generator
    env.reset(seed=3)
    generator = env._generator
    integers = generator.integers

    class Watched:
        def integers(self, *bounds: int) -> int:
            drawn.append(int(integers(*bounds)))
            return drawn[-1]

    env._generator = Watched()  # type: ignore[assignment]
    for t in range(60):
        env.step(t)
    assert set(drawn) == {1, 2, 3, 4}
    for t in range(60):
        there = [s for s in range(t + 1) if s + drawn[s] <= t]
        assert diary.done[t] == (max(there) if there else 0)
    again = Diary()
    lived(RealTime(again, delay=1, longest=4), list(range(60)))
    other = Diary()
    lived(RealTime(other, delay=1, longest=4), list(range(60)))
    assert again.done == other.done and again.done != list(range(60))


def test_a_measured_delay_is_steps_that_the_environment_makes_alone() -> None:
    now = [0.0]
    diary = Diary(length=12)
    env = RealTime(diary, period=0.1, idle=7, clock=lambda: now[0])
    env.reset(seed=0)
    rewards, missed = [], []
    for action, thought in ((1, 0.05), (2, 0.35), (3, 0.0), (4, 0.1001)):
        now[0] += thought
        obs, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
        missed.append(info["delay"])
    assert diary.done == [1, 1, 1, 1, 2, 3, 3, 4]
    assert missed == [0, 3, 0, 1] and rewards == [10.0, 20.0 + 30 + 40 + 50, 60.0, 70.0 + 80]
    assert obs[0] == 8 and not terminated
    now[0] += 100.0  # the episode ends meanwhile, and the action comes too late
    obs, _, terminated, _, info = env.step(5)
    assert terminated and obs[0] == 12 and diary.done[8:] == [4] * 4 and info["executed_action"] == 4


def test_between_observations_pass_as_many_steps_as_are_drawn() -> None:
    diary = Diary(length=200)
    env = Irregular(diary, gaps=[1, 5], probabilities=[0.25, 0.75], unit=0.5)
    obs, info = env.reset(seed=1)
    assert obs.tolist() == [0.0, -1.0, 0.0] and info["gap"] == 0
    gaps, last, terminated, action = [], 0.0, False, 0
    while not terminated:
        obs, reward, terminated, _, info = env.step(action)
        gap = int(obs[0] - last)
        assert obs[2] == 0.5 * gap and info["gap"] == gap
        assert reward == sum(10.0 * t for t in range(int(last) + 1, int(obs[0]) + 1))
        assert diary.done[int(last) : int(obs[0])] == [action] * gap
        gaps.append(gap)
        last, action = obs[0], action + 1
    assert last == 200 and set(gaps[:-1]) == {1, 5}
    assert 0.6 < np.mean(np.array(gaps[:-1]) == 5) < 0.9


def test_time_is_a_part_of_a_dict_or_not_shown() -> None:
    env: Any = Diary()
    inner = gymnasium.wrappers.TransformObservation(env, lambda o: {"a": o}, Dict({"a": env.observation_space}))
    seen, *_ = lived(Irregular(inner, gaps=[3], unit=2.0), [0])[0]
    assert seen["dt"].tolist() == [6.0] and seen["a"][0] == 3.0
    hidden = Irregular(env, gaps=[2], show=False)
    assert hidden.observation_space == env.observation_space
    assert lived(hidden, [0])[0][0].tolist() == [2.0, -1.0]


@pytest.mark.parametrize(
    "wrappers",
    [["realtime"], [{"kind": "realtime", "delay": 1, "longest": 3}], ["irregular"], ["realtime", "irregular"]],
)
def test_a_wrapped_environment_keeps_the_contract_of_gymnasium(wrappers: list[Any]) -> None:
    check_env(wrapped(gymnasium.make("CartPole-v1").unwrapped, wrappers), skip_render_check=True)
    check_env(wrapped(gymnasium.make("Pendulum-v1").unwrapped, wrappers), skip_render_check=True)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_adapter_wraps_every_copy(vectorization: Any) -> None:
    wrappers = [{"kind": "realtime", "delay": 2}, {"kind": "irregular", "gaps": [2], "unit": 0.1}]
    env = GymnasiumEnv(3, id="CartPole-v1", vectorization=vectorization, wrappers=wrappers, seed=5)
    try:
        obs, _ = env.reset()
        assert obs.shape == (3, 5) and (obs[:, 4] == 0).all()
        alone = wrapped(gymnasium.make("CartPole-v1"), wrappers)
        first, _ = alone.reset(seed=5)
        np.testing.assert_allclose(obs[0], first)
        for t in range(4):
            obs, reward, *_ = env.step(torch.full((3,), t % 2))
            mine, mine_reward, *_ = alone.step(t % 2)
            np.testing.assert_allclose(obs[0], mine)
            assert reward[0] == mine_reward == 2.0
    finally:
        env.close()


REFUSED = [
    ("realtim", r"unknown wrapper 'realtim' \(did you mean 'realtime'\?\)"),
    ({"kind": "realtime", "delay": -1}, "delay is -1; it must be an int of at least 0"),
    ({"kind": "realtime", "delay": 2, "longest": 1}, "longest is 1; it must be an int of at least delay, 2"),
    ({"kind": "realtime", "period": 0.0}, "period is 0.0; it must be above 0 seconds"),
    ({"kind": "realtime", "idle": 9}, r"idle is 9, which is no action of Discrete\(2\)"),
    ({"kind": "realtime", "late": 1}, "wrapper realtime: .*unexpected keyword argument 'late'"),
    ({"kind": "irregular", "gaps": [0]}, r"gaps is \[0\]; it must have ints of at least 1"),
    ({"kind": "irregular", "gaps": [1, 2], "probabilities": [0.5, 0.6]}, "probabilities is .* with sum 1"),
]


@pytest.mark.parametrize(("spec", "sentence"), REFUSED)
def test_a_wrong_wrapper_is_one_sentence(spec: Any, sentence: str) -> None:
    with pytest.raises(EnvError, match=sentence):
        GymnasiumEnv(1, id="CartPole-v1", wrappers=[spec])
    with pytest.raises(EnvError, match="wrappers are of single copies"):
        GymnasiumEnv(1, id="CartPole-v1", vectorization="vector_entry_point", wrappers=["realtime"])


def test_wrappers_of_gymnasium_are_known_by_name() -> None:
    limit, normal = {"kind": "TimeLimit", "max_episode_steps": 7}, "NormalizeObservation"
    env = GymnasiumEnv(2, id="CartPole-v1", wrappers=[limit, normal])
    env.reset(seed=0)
    lengths = [int(env.step(np.array([t % 2] * 2))[4]["episode_length"][0]) for t in range(14)]
    assert max(lengths) == 7
    with pytest.raises(EnvError, match="did you mean 'TimeLimit'"):
        GymnasiumEnv(1, id="CartPole-v1", wrappers=["TimeLimt"])
    with pytest.raises(EnvError, match="max_episode_steps"):
        GymnasiumEnv(1, id="CartPole-v1", wrappers=["TimeLimit"])
    with pytest.raises(EnvError, match=r"no subclass of gymnasium\.Wrapper"):
        GymnasiumEnv(1, id="CartPole-v1", wrappers=["json:JSONDecoder"])
