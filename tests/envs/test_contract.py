"""The contract of envs/base.py, checked on every environment in the registry."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.utils.passive_env_checker import check_action_space, check_observation_space
from gymnasium.vector import AutoresetMode, VectorEnv

from lifelong.envs.base import BatchedEnv, Param, select_state
from lifelong.envs.errors import EnvError
from lifelong.envs.registry import ADAPTERS, ENVIRONMENTS

NEEDS = {"ImageRows": "mlxtend", "envpool": "envpool"}
ADAPTER_OPTIONS: dict[str, dict[str, Any]] = {
    "gymnasium": {"id": "CartPole-v1"},
    "envpool": {"id": "MiniGrid-MemoryS7-v0", "num_threads": 1},
}


def named(names: list[str]) -> list[Any]:
    """Test parameters for environments, skipping those whose optional package is missing."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None,
                reason=f"{name} needs the optional package {NEEDS.get(name)}",
            ),
        )
        for name in names
    ]


EVERY = named(list(ENVIRONMENTS))
NATIVE = named([name for name in ENVIRONMENTS if name not in ADAPTERS])


def make(name: str, num_envs: int = 6, **options: Any) -> BatchedEnv:
    module, attribute = ENVIRONMENTS[name].split(":")
    env = getattr(importlib.import_module(module), attribute)
    return env(num_envs, **ADAPTER_OPTIONS.get(name, {}), **options)


def actions_of(env: BatchedEnv, steps: int, seed: int = 0) -> list[torch.Tensor]:
    env.action_space.seed(seed)
    return [torch.as_tensor(env.action_space.sample()) for _ in range(steps)]


def numpy(value: Any) -> Any:
    """Tensors as arrays, for Gymnasium's `data_equivalence`."""
    if isinstance(value, torch.Tensor):
        return value.numpy().copy()
    if isinstance(value, dict):
        return {k: numpy(v) for k, v in value.items()}
    return [numpy(v) for v in value]


def rollout(env: BatchedEnv, actions: list[torch.Tensor]) -> list[Any]:
    return [numpy(env.step(action)) for action in actions]


def same_state(left: Any, right: Any) -> bool:
    return all(torch.equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))


@pytest.mark.parametrize("name", EVERY)
def test_shapes_dtypes_and_devices_are_those_of_the_contract(name: str) -> None:
    env = make(name)
    obs, info = env.reset(seed=0)
    assert info == {}
    space = env.single_observation_space
    for action in actions_of(env, 30):
        assert obs.shape == (6, *(space.shape or ()))
        assert str(obs.dtype).removeprefix("torch.") == str(space.dtype)
        obs, reward, terminated, truncated, info = env.step(action)
        tensors = {"reward": reward, "terminated": terminated, "truncated": truncated, **info}
        assert all(isinstance(x, torch.Tensor) and x.device == env.device for x in tensors.values())
        assert all(x.shape[0] == 6 for x in tensors.values())
        assert reward.shape == (6,) and reward.dtype == torch.float32
        assert all(x.shape == (6,) and x.dtype == torch.bool for x in (terminated, truncated, info["_final_obs"]))
        assert info["final_obs"].shape == obs.shape and info["final_obs"].dtype == obs.dtype
        assert info["episode_return"].dtype == torch.float32 and info["episode_length"].dtype == torch.int64


@pytest.mark.parametrize("name", EVERY)
def test_every_observation_lies_in_the_space(name: str) -> None:
    env = make(name)
    obs, _ = env.reset(seed=1)
    seen = [obs]
    for action in actions_of(env, 60):
        obs, _, _, _, info = env.step(action)
        seen += [obs, info["final_obs"]]
    assert all(env.observation_space.contains(x.numpy()) for x in seen)
    assert all(env.single_observation_space.contains(row) for row in seen[-1].numpy())


@pytest.mark.parametrize("name", EVERY)
def test_it_is_a_gymnasium_vector_env(name: str) -> None:
    env = make(name)
    assert isinstance(env, VectorEnv)
    assert env.num_envs == 6
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.unwrapped is env and env.spec is None and env.render_mode is None
    check_observation_space(env.single_observation_space)
    check_action_space(env.single_action_space)
    assert env.action_space.contains(env.action_space.sample())
    low, high = env.SCORE
    assert low < high
    env.close()


@pytest.mark.parametrize("name", EVERY)
def test_final_obs_is_the_observation_wherever_no_episode_ended(name: str) -> None:
    env = make(name, num_envs=16, **({} if name in ADAPTERS else {"max_episode_steps": 20}))
    env.reset(seed=2)
    ended = 0
    for action in actions_of(env, 300):
        obs, _, terminated, truncated, info = env.step(action)
        done = terminated | truncated
        assert torch.equal(info["_final_obs"], done)
        assert torch.equal(info["final_obs"][~done], obs[~done])
        ended += int(done.sum())
    assert ended > 0


@pytest.mark.parametrize("name", NATIVE)
def test_steps_equal_a_simulation_without_autoreset(name: str) -> None:
    """final_obs is the observation before the reset; flags, returns and lengths agree with a Python loop."""
    limit = 9
    env, other = make(name, max_episode_steps=limit), make(name, max_episode_steps=limit)
    obs, _ = env.reset(seed=3)
    other.reset(seed=3)
    state = other.state
    assert torch.equal(obs, other.observe(state))
    ages, returns, differs = [0] * 6, [0.0] * 6, False
    for action in actions_of(env, 40):
        obs, reward, terminated, truncated, info = env.step(action)
        state, expected_reward, expected_terminated, _ = other.advance(state, action)
        final_obs, fresh = other.observe(state), other.draw_state()
        ages = [age + 1 for age in ages]
        returns = [x + y for x, y in zip(returns, expected_reward.tolist(), strict=True)]
        assert torch.allclose(info["final_obs"], final_obs, rtol=0, atol=1e-6)  # a compiled step rounds in its own way
        assert torch.equal(reward, expected_reward)
        assert torch.equal(terminated, expected_terminated)
        assert truncated.tolist() == [age >= limit for age in ages]
        assert info["episode_length"].tolist() == ages
        assert info["episode_return"].tolist() == pytest.approx(returns, abs=1e-4)
        done = terminated | truncated
        state = select_state(done, fresh, state)
        assert torch.allclose(obs, other.observe(state), rtol=0, atol=1e-6)
        differs |= bool((obs[done] != final_obs[done]).any())
        ages = [0 if d else age for d, age in zip(done.tolist(), ages, strict=True)]
        returns = [0.0 if d else x for d, x in zip(done.tolist(), returns, strict=True)]
    assert differs


@pytest.mark.parametrize("name", NATIVE)
def test_a_time_limit_truncates_at_exactly_that_step_and_does_not_terminate(name: str) -> None:
    limits = torch.tensor([2, 3, 2, 3])
    env, free = make(name, num_envs=4, max_episode_steps=limits.tolist()), make(name, num_envs=4, max_episode_steps=0)
    env.reset(seed=4)
    free.reset(seed=4)
    age, first_episode, truncations = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool), 0
    for action in actions_of(env, 6):
        _, _, terminated, truncated, _ = env.step(action)
        age += 1
        assert torch.equal(truncated, age >= limits)
        without_limit = free.step(action)[2]
        assert torch.equal(terminated[first_episode], without_limit[first_episode])
        first_episode &= ~(terminated | truncated)
        truncations += int(truncated.sum())
        age[terminated | truncated] = 0
    assert truncations >= 4


class _TwoSteps(BatchedEnv):
    """Terminates at the second step."""

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return gymnasium.spaces.Box(0, 9, (1,), np.float32), gymnasium.spaces.Discrete(2)

    def draw_state(self) -> Any:
        from lifelong.envs.control.cartpole import CartPoleState

        return CartPoleState(torch.zeros(self.num_envs, 1))

    def advance(self, state: Any, action: torch.Tensor) -> Any:
        counted = state.physics + 1
        return type(state)(counted), counted[:, 0], counted[:, 0] >= 2, {}

    def observe(self, state: Any) -> torch.Tensor:
        return state.physics


def test_termination_stays_visible_on_the_step_of_the_time_limit() -> None:
    env = _TwoSteps(1, max_episode_steps=2)
    env.reset()
    env.step(torch.zeros(1))
    _, _, terminated, truncated, info = env.step(torch.zeros(1))
    assert bool(terminated) and bool(truncated)
    assert info["final_obs"].item() == 2.0


@pytest.mark.parametrize("name", NATIVE)
def test_every_reset_and_autoreset_draws_fresh_randomness(name: str) -> None:
    env = make(name, num_envs=32, max_episode_steps=1)
    env.reset(seed=5)
    states = [env.state]
    env.reset()
    states.append(env.state)
    for action in actions_of(env, 2):
        env.step(action)
        states.append(env.state)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    assert not any(same_state(states[i], states[j]) for i, j in pairs)


@pytest.mark.parametrize("name", EVERY)
def test_the_seed_alone_decides_the_trajectory(name: str) -> None:
    env, same = make(name, seed=7), make(name, seed=7)
    actions = actions_of(env, 50)
    first = env.reset()[0].clone(), rollout(env, actions)
    assert data_equivalence(numpy(first[0]), numpy(same.reset()[0]), exact=True)
    assert data_equivalence(first[1], rollout(same, actions), exact=True)
    assert data_equivalence(numpy(first[0]), numpy(same.reset(seed=7)[0]), exact=True)
    assert data_equivalence(first[1], rollout(same, actions), exact=True)
    same.reset(seed=8)
    assert not data_equivalence(first[1], rollout(same, actions), exact=True)


@pytest.mark.parametrize("name", NATIVE)
def test_a_saved_environment_goes_on_bit_for_bit(name: str) -> None:
    env = make(name, max_episode_steps=[5, 6, 7, 8, 9, 10])
    env.reset(seed=9)
    before, after = actions_of(env, 14)[:7], actions_of(env, 14)[7:]
    rollout(env, before)
    saved = env.state_dict()
    obs, expected = env.observe(env.state), rollout(env, after)
    restored = make(name, seed=1234)
    restored.load_state_dict(saved)
    assert torch.equal(restored.observe(restored.state), obs)
    assert data_equivalence(rollout(restored, after), expected, exact=True)


@pytest.mark.parametrize("name", EVERY)
def test_a_state_of_another_number_of_copies_is_refused(name: str) -> None:
    env = make(name, num_envs=2)
    env.reset(seed=0)
    with pytest.raises(EnvError, match="2 copies"):
        make(name, num_envs=3).load_state_dict(env.state_dict())


@pytest.mark.parametrize("name", EVERY)
def test_a_partial_reset_leaves_the_other_copies_alone(name: str) -> None:
    env = make(name, num_envs=16)
    env.reset(seed=10)
    for action in actions_of(env, 5):
        before, _, _, _, info = env.step(action)
    ages, mask = env.age_B.clone(), torch.arange(16) % 2 == 0
    obs, _ = env.reset(options={"reset_mask": mask})
    assert torch.equal(obs[~mask], before[~mask])
    assert not torch.equal(obs[mask], before[mask])
    assert env.age_B.tolist() == torch.where(mask, 0, ages).tolist()
    assert not env.return_B[mask].any()
    _, _, _, _, info = env.step(actions_of(env, 1)[0])
    assert info["episode_length"].tolist() == torch.where(mask, 1, ages + 1).tolist()


@pytest.mark.parametrize("name", EVERY)
def test_a_wrong_mask_is_refused(name: str) -> None:
    env = make(name, num_envs=3)
    env.reset(seed=0)
    for mask in (torch.tensor([1, 0, 1]), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(EnvError, match="mask"):
            env.reset(options={"reset_mask": mask})


def other_value(param: Param) -> float:
    """A value that is allowed and is not the default."""
    if param.high < float("inf"):
        halfway = (param.default + param.high) / 2 if param.default < param.high else (param.low + param.high) / 2
        return float(np.ceil(halfway)) if param.integer else halfway
    return param.default + 1


@pytest.mark.parametrize("name", NATIVE)
def test_a_parameter_is_written_only_to_the_copies_of_the_mask(name: str) -> None:
    env = make(name, num_envs=4)
    known = env.all_params()
    mask = torch.tensor([True, False, True, False])
    written = {n: other_value(p) for n, p in known.items() if n not in ("lag", "classes_from", "n", "least", "pairs")}
    env.set_params(mask, **written)
    for n, value in written.items():
        assert env.params[n].tolist() == pytest.approx([value, known[n].default] * 2)
        assert value != known[n].default
    env.reset(seed=0)
    env.step(actions_of(env, 1)[0])


@pytest.mark.parametrize("name", NATIVE)
def test_a_parameter_may_be_a_sequence_with_one_value_a_copy(name: str) -> None:
    env = make(name, num_envs=3, max_episode_steps=[4, 5, 6])
    assert env.params["max_episode_steps"].tolist() == [4, 5, 6]
    with pytest.raises(EnvError, match="has shape"):
        env.set_params(max_episode_steps=[4, 5])


@pytest.mark.parametrize("name", NATIVE)
def test_a_mistyped_parameter_is_refused_with_the_nearest_name(name: str) -> None:
    env = make(name)
    for known in env.all_params():
        if len(known) > 2:
            with pytest.raises(EnvError, match=f"did you mean '{known}'"):
                env.set_params(**{known + "x": 1})
    with pytest.raises(EnvError, match="unknown parameter"):
        make(name, qqqqqq=1)


@pytest.mark.parametrize("name", NATIVE)
def test_a_parameter_out_of_range_is_refused(name: str) -> None:
    env = make(name)
    for known, param in env.all_params().items():
        for value in (param.low - 1, param.high * 2 + 1, float("nan")):
            with pytest.raises(EnvError, match=f"{known} is"):
                env.set_params(**{known: value})


@pytest.mark.parametrize("name", NATIVE)
def test_first_episodes_may_start_at_a_random_age(name: str) -> None:
    env = make(name, num_envs=64, max_episode_steps=50, random_initial_age=True)
    env.reset(seed=11)
    assert len(env.age_B.unique()) > 10 and int(env.age_B.max()) < 50
    env.step(actions_of(env, 1)[0])


@pytest.mark.parametrize("name", EVERY)
def test_a_step_before_the_first_reset_is_refused(name: str) -> None:
    env = make(name)
    with pytest.raises(EnvError, match="before the first reset"):
        env.step(actions_of(env, 1)[0])


@pytest.mark.parametrize("name", NATIVE)
def test_a_step_leaves_the_tensors_it_was_given_unchanged(name: str) -> None:
    env = make(name)
    obs, _ = env.reset(seed=12)
    kept, state = obs.clone(), env.state
    copies = {f.name: getattr(state, f.name).clone() for f in fields(state)}
    for action in actions_of(env, 3):
        env.step(action)
    assert torch.equal(obs, kept)
    assert all(torch.equal(getattr(state, n), copy) for n, copy in copies.items())


@pytest.mark.parametrize("name", NATIVE)
def test_gymnasium_makes_it_by_name(name: str) -> None:
    import envs.register  # noqa: F401

    env = gymnasium.make_vec(f"lifelong/{name}-v0", num_envs=8, seed=3)
    obs, _ = env.reset()
    assert obs.shape == (8, *(env.single_observation_space.shape or ()))
    assert torch.equal(obs, make(name, num_envs=8, seed=3).reset()[0])
    assert env.spec is not None and env.spec.id == f"lifelong/{name}-v0"
    env.step(env.action_space.sample())
    env.close()


# ---- what is returned is the caller's to keep ------------------------------------------------------------------------


def steps_of(env: BatchedEnv, actions: list[torch.Tensor], copy: bool) -> list[torch.Tensor]:
    """All that `env` returns, as it is or copied at once."""
    keep = torch.clone if copy else lambda x: x
    kept = [keep(env.reset(seed=3)[0])]
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        kept += [keep(x) for x in (obs, reward, terminated, truncated, *info.values())]
    return kept


@pytest.mark.parametrize("name", EVERY)
def test_what_was_returned_is_never_written_to_again(name: str) -> None:
    env, other = make(name), make(name)
    kept = steps_of(env, actions_of(env, 25), copy=False)
    for value, expected in zip(kept, steps_of(other, actions_of(other, 25), copy=True), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("name", NATIVE)
def test_nothing_has_to_be_copied_for_it(name: str) -> None:
    env = make(name)
    steps_of(env, actions_of(env, 25), copy=False)
    assert not env._reused


@dataclass(frozen=True)
class _Counted:
    n: torch.Tensor


class _Careless(BatchedEnv):
    """Counts steps; fills the same memory again and again, as `how` says."""

    MAX_EPISODE_STEPS = 5

    def __init__(self, num_envs: int = 1, *, how: str, **options: Any) -> None:
        self.how, self.turn = how, 0
        self.array = np.zeros((num_envs, 1), np.float32)
        self.rewards, self.info = torch.zeros(num_envs), torch.zeros(num_envs)
        self.flags, self.ring = torch.zeros(num_envs, dtype=torch.bool), torch.zeros(3, num_envs, 1)
        super().__init__(num_envs, **options)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return gymnasium.spaces.Box(0, 99, (1,), np.float32), gymnasium.spaces.Discrete(2)

    def draw_state(self) -> Any:
        return _Counted(torch.zeros(self.num_envs, 1))

    def advance(self, state: Any, action: torch.Tensor) -> Any:
        n = state.n.add_(1) if self.how == "state" else state.n + 1
        if self.how != "rewards":
            return _Counted(n), n[:, 0].clone(), n[:, 0] >= 4, {"extra": n[:, 0] * 2}
        self.rewards.copy_(n[:, 0])
        self.flags.copy_(n[:, 0] >= 4)
        self.info.copy_(n[:, 0] * 2)
        return _Counted(n), self.rewards, self.flags, {"extra": self.info}

    def observe(self, state: Any) -> torch.Tensor:
        n: torch.Tensor = state.n
        if self.how == "array":
            self.array[:] = n.numpy()
            return torch.from_numpy(self.array)
        if self.how == "ring":
            self.turn = (self.turn + 1) % 3
            return self.ring[self.turn].copy_(n)
        return n


@pytest.mark.parametrize("how", ["array", "ring", "state", "rewards"])
def test_an_environment_that_fills_its_memory_again_is_copied_from(how: str) -> None:
    env = _Careless(3, how=how)
    kept = steps_of(env, actions_of(env, 40), copy=False)
    obs, rewards, terminated = kept[1::9], kept[2::9], kept[3::9]
    extra, final_obs = kept[5::9], kept[6::9]
    for t, row in enumerate(zip(obs, rewards, terminated, final_obs, extra, strict=True)):
        n = t % 4 + 1
        expected = (n % 4, n, n == 4, n, 2 * n)
        assert [x.flatten().tolist() for x in row] == [[x] * 3 for x in expected], (how, t)
    assert env._reused == ({"reward", "terminated", "extra"} if how == "rewards" else {"obs"})
    assert env._watch is None


@pytest.mark.parametrize("name", NATIVE)
def test_a_state_saved_before_a_parameter_was_there_is_restored_with_its_default(name: str) -> None:
    env, other, whole = make(name), make(name, seed=5), make(name)
    env.reset(seed=0)
    saved = env.state_dict()
    whole.load_state_dict(saved)
    dropped = sorted(saved["params"])[0]
    other.load_state_dict({**saved, "params": {k: v for k, v in saved["params"].items() if k != dropped}})
    assert other.params.keys() == env.params.keys()
    actions = actions_of(env, 5)
    for left, right in zip(rollout(whole, actions), rollout(other, actions), strict=True):
        assert data_equivalence(left, right)
