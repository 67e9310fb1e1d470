"""Adapters: the same episodes as a plain single environment, whatever the autoreset mode."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from lifelong.envs.adapters.gymnasium import GymnasiumEnv
from lifelong.envs.control.cartpole import CartPole
from lifelong.envs.errors import EnvError

needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="the package envpool is missing")


class Walk(gymnasium.Env[Any, Any]):
    """A random walk with a Dict or image observation, which terminates at random."""

    def __init__(self, image: bool = False) -> None:
        parts = {"where": spaces.Box(-99, 99, (2,), np.float64), "kind": spaces.Discrete(3)}
        self.image = image
        self.observation_space = spaces.Box(0, 255, (4, 4, 1), np.uint8) if image else spaces.Dict(parts)
        self.action_space = spaces.MultiDiscrete([3, 2])

    def _observe(self) -> Any:
        if self.image:
            return np.full((4, 4, 1), int(abs(self.where[0]) * 50) % 256, np.uint8)
        return {"where": self.where.copy(), "kind": int(self.np_random.integers(3))}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.where = self.np_random.normal(size=2)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.where = self.where + action + self.np_random.normal(size=2) * 0.1
        return self._observe(), float(self.where.sum()), bool(self.np_random.random() < 0.15), False, {}


gymnasium.register("tests/DictWalk-v0", entry_point=lambda **kwargs: Walk(**kwargs), max_episode_steps=12)
gymnasium.register("tests/ImageWalk-v0", entry_point=lambda **kwargs: Walk(image=True), max_episode_steps=12)

IDS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"max_episode_steps": 15},
    "tests/DictWalk-v0": {},
    "tests/ImageWalk-v0": {},
    "Blackjack-v1": {},
}


def flat(env: gymnasium.Env[Any, Any], obs: Any) -> np.ndarray:
    """What the adapter should make of a single observation."""
    if isinstance(env.observation_space, spaces.Box):
        return np.asarray(obs)
    return np.asarray(spaces.flatten(env.observation_space, obs), np.float32)


def plain_episodes(id: str, copy: int, actions: list[Any]) -> list[tuple[Any, ...]]:
    """(reward, terminated, truncated, final_obs, next obs) of one copy, in a plain loop over a single environment."""
    env = gymnasium.make(id, **IDS[id])
    env.reset(seed=5 + copy)
    steps = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        final = flat(env, obs)
        if terminated or truncated:
            obs, _ = env.reset()
        steps.append((float(reward), terminated, truncated, final, flat(env, obs)))
    return steps


def adapter_episodes(env: GymnasiumEnv, count: int) -> tuple[list[list[Any]], list[list[tuple[Any, ...]]]]:
    """The actions and steps of every copy; the reset observation of a dead step completes the step before it."""
    env.reset(seed=5)
    env.action_space.seed(0)
    actions: list[list[Any]] = [[] for _ in range(env.num_envs)]
    steps: list[list[tuple[Any, ...]]] = [[] for _ in range(env.num_envs)]
    for _ in range(count):
        action = env.action_space.sample()
        obs, reward, terminated, truncated, info = env.step(torch.as_tensor(action))
        valid = info.get("valid", torch.ones(env.num_envs, dtype=torch.bool))
        for b in range(env.num_envs):
            if valid[b]:
                actions[b].append(action[b])
                step = (reward[b], terminated[b], truncated[b])
                steps[b].append((*(x.item() for x in step), info["final_obs"][b].numpy(), obs[b].numpy()))
            else:
                assert reward[b] == 0 and not terminated[b] and not truncated[b] and info["is_init"][b]
                assert info["episode_length"][b] == 0 and info["episode_return"][b] == 0
                steps[b][-1] = (*steps[b][-1][:4], obs[b].numpy())
    return actions, steps


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("autoreset", ["same_step", "disabled", "next_step"])
def test_every_autoreset_mode_gives_the_episodes_of_a_plain_environment(id: str, autoreset: str) -> None:
    env = GymnasiumEnv(3, id=id, autoreset=autoreset, kwargs=IDS[id])
    next_step = autoreset == "next_step"
    assert env.metadata["autoreset_mode"] == (AutoresetMode.NEXT_STEP if next_step else AutoresetMode.SAME_STEP)
    actions, steps = adapter_episodes(env, 80)
    ended = 0
    for b in range(3):
        expected = plain_episodes(id, b, actions[b])
        last = len(expected) - 1
        for i, (got, want) in enumerate(zip(steps[b], expected, strict=True)):
            assert got[:3] == (pytest.approx(want[0], rel=1e-5), want[1], want[2])
            np.testing.assert_allclose(got[3], want[3], rtol=1e-6)
            if not (next_step and i == last and (want[1] or want[2])):  # its reset would come one step later
                np.testing.assert_allclose(got[4], want[4], rtol=1e-6)
            ended += want[1] or want[2]
    assert ended > 5
    env.close()


def test_next_step_marks_exactly_the_step_after_every_end() -> None:
    env = GymnasiumEnv(4, id="CartPole-v1", autoreset="next_step")
    env.reset(seed=0)
    env.action_space.seed(0)
    ended, dead = torch.zeros(4, dtype=torch.bool), 0
    for _ in range(100):
        obs, _, terminated, truncated, info = env.step(env.action_space.sample())
        assert torch.equal(info["valid"], ~ended)
        assert torch.equal(info["is_init"], ended)
        ended = terminated | truncated
        assert torch.equal(info["final_obs"], obs)
        dead += int((~info["valid"]).sum())
    assert dead > 5


def test_a_given_vector_environment_is_wrapped_with_its_own_mode() -> None:
    given = gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point")
    env = GymnasiumEnv(env=given)
    assert env.num_envs == 3 and env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[4]["valid"].all()
    with pytest.raises(EnvError, match="only some copies"):
        env.reset(options={"reset_mask": torch.tensor([True, False, False])})
    with pytest.raises(EnvError, match="3 copies"):
        GymnasiumEnv(4, env=given)


def test_a_partial_reset_in_next_step_mode_leaves_no_dead_step_behind() -> None:
    env = GymnasiumEnv(2, id="tests/DictWalk-v0", autoreset="next_step")
    env.reset(seed=0)
    env.action_space.seed(0)
    while True:
        done = env.step(env.action_space.sample())[4]["_final_obs"]
        if done.any():
            break
    env.reset(options={"reset_mask": done})
    info = env.step(env.action_space.sample())[4]
    assert info["valid"].all() and info["episode_length"][done].tolist() == [1] * int(done.sum())


def test_async_processes_give_the_same_steps_as_sync() -> None:
    rollouts = []
    for vectorization in ("sync", "async"):
        env = GymnasiumEnv(2, id="CartPole-v1", vectorization=vectorization, kwargs={"max_episode_steps": 7})
        env.reset(seed=0)
        rollouts.append([env.step(torch.tensor([1, 0])) for _ in range(15)])
        env.close()
    for left, right in zip(*rollouts, strict=True):
        assert torch.equal(left[0], right[0]) and torch.equal(left[4]["final_obs"], right[4]["final_obs"])


def test_images_stay_uint8_other_arrays_become_float32_and_the_rest_is_flattened() -> None:
    image = GymnasiumEnv(2, id="tests/ImageWalk-v0")
    assert image.reset()[0].dtype == torch.uint8 and image.single_observation_space.shape == (4, 4, 1)
    walk = GymnasiumEnv(2, id="tests/DictWalk-v0")
    obs, _ = walk.reset(seed=0)
    assert obs.shape == (2, 5) and obs.dtype == torch.float32
    assert obs[:, :3].sum(1).tolist() == [1.0, 1.0]  # `kind`, one-hot, comes first: Dict keys are sorted


class Endless(Walk):
    """Has an observation without fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Sequence(spaces.Discrete(2))


def test_observations_without_fixed_size_are_refused() -> None:
    with pytest.raises(EnvError, match="no fixed size"):
        GymnasiumEnv(env=SyncVectorEnv([Endless]))


def test_wrong_calls_are_one_sentence() -> None:
    with pytest.raises(EnvError, match="either id"):
        GymnasiumEnv(2)
    with pytest.raises(EnvError, match="cannot make 'CartPoleX-v1'"):
        GymnasiumEnv(2, id="CartPoleX-v1")
    with pytest.raises(EnvError, match="autoreset is 'never'"):
        GymnasiumEnv(2, id="CartPole-v1", autoreset="never")
    with pytest.raises(EnvError, match="vectorization is 'threads'"):
        GymnasiumEnv(2, id="CartPole-v1", vectorization="threads")
    with pytest.raises(EnvError, match="no task parameter 'gravity'"):
        GymnasiumEnv(2, id="CartPole-v1", gravity=3.0)
    with pytest.raises(EnvError, match="random_initial_age"):
        GymnasiumEnv(2, id="CartPole-v1", random_initial_age=True)


def test_a_vector_environment_without_a_mode_is_refused() -> None:
    given: VectorEnv = SyncVectorEnv([Walk])
    del given.metadata["autoreset_mode"]
    with pytest.raises(EnvError, match="autoreset mode"):
        GymnasiumEnv(env=given)


class DenseWalk(VectorEnv):
    """A vector environment whose Dict observations and final_obs are dense, and whose episodes have one step."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    num_envs = 2
    single_observation_space = spaces.Dict({"a": spaces.Box(-9, 9, (1,), np.float32), "b": spaces.Discrete(2)})
    single_action_space = spaces.Discrete(2)

    def __init__(self, final_obs: bool) -> None:
        self.final_obs = final_obs
        self.action_space = spaces.MultiDiscrete([2, 2])

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return {"a": np.zeros((2, 1), np.float32), "b": np.zeros(2, np.int64)}, {}

    def step(self, actions: Any) -> Any:
        final = {"a": np.full((2, 1), 7, np.float32), "b": np.array([1, 0])}
        info = {"final_obs": final, "_final_obs": np.ones(2, bool)} if self.final_obs else {}
        return self.reset()[0], np.zeros(2), np.ones(2, bool), np.zeros(2, bool), info


def test_dense_final_obs_of_a_given_environment_are_understood_and_missing_ones_refused() -> None:
    env, without = (GymnasiumEnv(env=DenseWalk(final_obs)) for final_obs in (True, False))
    env.reset()
    obs, *_, info = env.step(torch.zeros(2))
    assert obs.tolist() == [[0.0, 1.0, 0.0]] * 2
    assert info["final_obs"].tolist() == [[7.0, 0.0, 1.0], [7.0, 1.0, 0.0]]
    without.reset()
    with pytest.raises(EnvError, match="final_obs"):
        without.step(torch.zeros(2))


def test_wrapping_an_environment_of_our_own_changes_nothing() -> None:
    own, inner = CartPole(4, max_episode_steps=5, seed=1), CartPole(4, max_episode_steps=5, seed=1)
    wrapped = GymnasiumEnv(env=inner, seed=1)
    assert torch.equal(own.reset()[0], wrapped.reset()[0])
    for _ in range(12):
        left, right = own.step(torch.tensor([0, 1, 0, 1])), wrapped.step(torch.tensor([0, 1, 0, 1]))
        assert all(torch.equal(x, y) for x, y in zip(left[:4], right[:4], strict=True))
        assert left[4].keys() == right[4].keys()
        assert all(torch.equal(left[4][key], right[4][key]) for key in left[4])


def test_the_score_is_an_option() -> None:
    assert GymnasiumEnv(1, id="CartPole-v1", score=[10, 500]).SCORE == (10.0, 500.0)
    assert GymnasiumEnv(1, id="CartPole-v1").SCORE == (0.0, 1.0)


def fresh_episodes_after_loading(make: Any) -> None:
    env = make()
    start = env.reset(seed=3)[0].clone()
    for _ in range(6):
        env.step(env.action_space.sample())
    saved, resumed = env.state_dict(), []
    for _ in range(2):
        other = make()
        other.load_state_dict(saved)
        assert not other.age_B.any() and not other.exact_state
        resumed.append(other.observe(other.state).clone())
        other.step(other.action_space.sample())
    assert torch.equal(resumed[0], resumed[1])
    assert not torch.equal(resumed[0], start)


def test_loading_starts_fresh_episodes_that_the_saved_state_decides() -> None:
    fresh_episodes_after_loading(lambda: GymnasiumEnv(3, id="CartPole-v1", vectorization="vector_entry_point"))


# ---- EnvPool ---------------------------------------------------------------------------------------------------------


@needs_envpool
def test_envpool_gives_the_episodes_of_single_pools_without_dead_steps() -> None:
    import envpool

    from lifelong.envs.adapters.envpool import EnvPoolEnv

    id, steps = "MiniGrid-MemoryS7-v0", 500
    env = EnvPoolEnv(3, id=id, categories=False, num_threads=1, seed=11)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(steps)]
    obs, _ = env.reset()
    got = [env.step(action) for action in actions]
    ended = 0
    for b in range(3):
        pool = envpool.make(id, env_type="gymnasium", num_envs=1, num_threads=1, seed=11 + b)
        raw, _ = pool.reset()
        assert np.array_equal(obs[b], raw["image"][0])
        for t in range(steps):
            raw, reward, terminated, truncated, _ = pool.step(actions[t][b : b + 1])
            next_obs, got_reward, got_terminated, got_truncated, info = got[t]
            assert got_reward[b].item() == pytest.approx(reward[0])
            assert (bool(got_terminated[b]), bool(got_truncated[b])) == (terminated[0], truncated[0])
            assert np.array_equal(info["final_obs"][b], raw["image"][0])
            if terminated[0] or truncated[0]:
                ended += 1
                raw, reward, *_ = pool.step(actions[t][b : b + 1])  # EnvPool's own dead step
                assert reward[0] == 0
            assert np.array_equal(next_obs[b], raw["image"][0])
    assert ended > 3


@needs_envpool
def test_minigrid_views_are_categories_of_every_cell() -> None:
    from lifelong.envs.adapters.envpool import EnvPoolEnv

    env, raw = (EnvPoolEnv(4, categories=categories, num_threads=1, seed=1) for categories in (None, False))
    obs, image = env.reset()[0], raw.reset()[0]
    assert image.dtype == torch.uint8 and image.shape == (4, 7, 7, 3)
    assert obs.dtype == torch.uint8 and torch.equal(obs.view(4, 7, 7, 3), image)
    assert env.single_observation_space.nvec.tolist() == [11, 6, 3] * 49
    env.action_space.seed(0)
    for _ in range(200):
        obs, *_ = env.step(env.action_space.sample())
        assert obs.numpy() in env.observation_space


@needs_envpool
def test_minigrid_sizes_share_their_spaces() -> None:
    from lifelong.envs.adapters.envpool import EnvPoolEnv

    small, large = (EnvPoolEnv(2, id=f"MiniGrid-MemoryS{s}-v0", num_threads=1) for s in (7, 13))
    assert small.single_observation_space == large.single_observation_space
    assert small.single_action_space == large.single_action_space


@needs_envpool
def test_envpool_can_flatten_the_whole_observation_and_wraps_other_games() -> None:
    from lifelong.envs.adapters.envpool import EnvPoolEnv

    whole = EnvPoolEnv(2, observation="flatten", num_threads=1)
    assert whole.reset()[0].shape == (2, 4 + 7 * 7 * 3 + 96)
    pendulum = EnvPoolEnv(2, id="Pendulum-v1", num_threads=1)
    pendulum.reset()
    obs, reward, *_ = pendulum.step(torch.zeros(2, 1))
    assert obs.shape == (2, 3) and bool((reward < 0).any())


@needs_envpool
def test_a_reset_with_a_seed_replays_the_pool() -> None:
    from lifelong.envs.adapters.envpool import EnvPoolEnv

    env = EnvPoolEnv(8, num_threads=1, seed=2)
    first, second = env.reset()[0], env.reset()[0]
    assert not torch.equal(first, second)
    assert torch.equal(env.reset(seed=2)[0], first)
    assert not torch.equal(env.reset(seed=3)[0], first)


@needs_envpool
def test_envpool_starts_fresh_episodes_after_loading() -> None:
    from lifelong.envs.adapters.envpool import EnvPoolEnv

    fresh_episodes_after_loading(lambda: EnvPoolEnv(8, num_threads=1))


@needs_envpool
def test_wrong_envpool_calls_are_one_sentence() -> None:
    from lifelong.envs.adapters.envpool import EnvPoolEnv

    with pytest.raises(EnvError, match="nearest: MiniGrid-Memory"):
        EnvPoolEnv(2, id="MiniGrid-MemoryS8-v0")
    with pytest.raises(EnvError, match="cannot make"):
        EnvPoolEnv(2, kwargs={"nonsense": 1})
    with pytest.raises(EnvError, match="valid: image, flatten"):
        EnvPoolEnv(2, observation="mission")
    with pytest.raises(EnvError, match="no part 'image'"):
        EnvPoolEnv(2, id="Pendulum-v1", observation="image")
    with pytest.raises(EnvError, match="categories needs"):
        EnvPoolEnv(2, id="Pendulum-v1", categories=True)


def test_without_envpool_the_adapter_imports_and_its_use_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    monkeypatch.delitem(sys.modules, "lifelong.envs.adapters.envpool", raising=False)
    from lifelong.envs.adapters.envpool import EnvPoolEnv

    with pytest.raises(EnvError, match=r"pip install 'lifelong\[envpool\]'"):
        EnvPoolEnv(2)


def test_a_vector_form_that_cannot_reset_some_copies_can_reset_all() -> None:
    env = GymnasiumEnv(3, id="CartPole-v1", vectorization="vector_entry_point")
    first = env.reset(seed=0)[0].clone()
    env.step(torch.zeros(3))
    again, _ = env.reset(options={"reset_mask": torch.ones(3, dtype=torch.bool)})
    assert not torch.equal(first, again) and not env.age_B.any()
    assert env.step(torch.zeros(3))[4]["valid"].all()
    env.close()


def test_asynchronous_workers_leave_interrupts_to_the_parent() -> None:
    env = GymnasiumEnv(2, id="CartPole-v1", vectorization="async")
    env.reset(seed=0)
    for process in env.env.processes:
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(process.pid, number)
    assert env.step(torch.zeros(2))[0].shape == (2, 4)
    env.close()
    assert not any(process.is_alive() for process in env.env.processes)
