"""Classic control: our dynamics are Gymnasium's, at default and at other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.envs.base import BatchedEnv
from lifelong.envs.control.acrobot import Acrobot, AcrobotState
from lifelong.envs.control.cartpole import CartPole, CartPoleState
from lifelong.envs.control.mountain_car import MountainCar, MountainCarState
from lifelong.envs.control.pendulum import Pendulum, PendulumState

# environment, its state class, Gymnasium's id, half the range of states to start a single step from
CASES: dict[str, tuple[type[BatchedEnv], Callable[..., Any], str, list[float]]] = {
    "CartPole": (CartPole, CartPoleState, "CartPole-v1", [2.6, 3.0, 0.25, 3.0]),
    "Acrobot": (Acrobot, AcrobotState, "Acrobot-v1", [3.1, 3.1, 6.0, 9.0]),
    "MountainCar": (MountainCar, MountainCarState, "MountainCar-v0", [0.9, 0.07]),
    "Pendulum": (Pendulum, PendulumState, "Pendulum-v1", [3.1, 8.0]),
}
# our parameter -> (value, the attributes of Gymnasium's environment that mean the same)
OTHER: dict[str, dict[str, tuple[float, dict[str, Any]]]] = {
    "CartPole": {
        "gravity": (3.0, {"gravity": 3.0}),
        "masscart": (2.0, {"masscart": 2.0, "total_mass": 2.1}),
        "masspole": (0.5, {"masspole": 0.5, "total_mass": 1.5, "polemass_length": 0.25}),
        "length": (1.5, {"length": 1.5, "polemass_length": 0.15}),
        "force_mag": (-4.0, {"force_mag": -4.0}),
        "tau": (0.05, {"tau": 0.05}),
    },
    "Acrobot": {
        "link_length_1": (1.5, {"LINK_LENGTH_1": 1.5}),
        "link_mass_1": (2.0, {"LINK_MASS_1": 2.0}),
        "link_mass_2": (0.7, {"LINK_MASS_2": 0.7}),
        "link_com_1": (0.8, {"LINK_COM_POS_1": 0.8}),
        "link_com_2": (0.3, {"LINK_COM_POS_2": 0.3}),
        "link_moi": (1.5, {"LINK_MOI": 1.5}),
        "torque": (3.0, {"AVAIL_TORQUE": [-3.0, 0.0, 3.0]}),
        "dt": (0.1, {"dt": 0.1}),
    },
    "MountainCar": {
        "gravity": (0.004, {"gravity": 0.004}),
        "force": (-0.002, {"force": -0.002}),
        "goal_position": (0.1, {"goal_position": 0.1}),
        "goal_velocity": (0.03, {"goal_velocity": 0.03}),
    },
    "Pendulum": {
        "g": (4.0, {"g": 4.0}),
        "m": (2.0, {"m": 2.0}),
        "l": (0.6, {"l": 0.6}),
        "max_torque": (0.5, {"max_torque": 0.5}),
        "dt": (0.02, {"dt": 0.02}),
    },
}


def gymnasium_step(reference: Any, state: Tensor, action: Tensor) -> tuple[Any, float, bool, Any]:
    reference.state = state.double().numpy()
    reference.steps_beyond_terminated = None
    a = action.numpy() if action.dim() else int(action)
    obs, reward, terminated, _, _ = reference.step(a)
    return obs, float(reward), terminated, reference.state


def assert_one_step_is_gymnasiums(env: BatchedEnv, reference: Any, state: Any, action: Tensor) -> int:
    """Compare one step of every copy; the number of terminations."""
    following, reward, terminated, _ = env.advance(state, action)
    obs = env.observe(following)
    for i in range(env.num_envs):
        got = gymnasium_step(reference, state.physics[i], action[i])
        np.testing.assert_allclose(obs[i].numpy(), got[0], rtol=1e-5, atol=1e-5)
        assert reward[i].item() == pytest.approx(got[1], rel=1e-5, abs=1e-5)
        assert bool(terminated[i]) == got[2]
    return int(terminated.sum())


@pytest.mark.parametrize("name", CASES)
def test_episodes_follow_gymnasium_step_by_step(name: str) -> None:
    kind, _, id, _ = CASES[name]
    env, reference = kind(4, seed=0), gymnasium.make(id).unwrapped
    env.reset()
    reference.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(250):
        action = torch.as_tensor(env.action_space.sample())
        assert_one_step_is_gymnasiums(env, reference, env.state, action)
        env.step(action)


@pytest.mark.parametrize("name", CASES)
def test_steps_from_all_over_the_state_space_are_gymnasiums(name: str) -> None:
    kind, make_state, id, spread = CASES[name]
    env, reference = kind(500), gymnasium.make(id).unwrapped
    reference.reset(seed=0)
    env.action_space.seed(0)
    wide = (torch.rand(500, len(spread), generator=torch.Generator().manual_seed(0)) * 2 - 1) * torch.tensor(spread)
    if name == "MountainCar":
        wide[:, 0] -= 0.3
    ended = assert_one_step_is_gymnasiums(env, reference, make_state(wide), torch.as_tensor(env.action_space.sample()))
    assert (ended == 0) == (name == "Pendulum")


@pytest.mark.parametrize("name, param", [(n, p) for n in CASES for p in CASES[n][0].PARAMS if p in OTHER[n]])
def test_a_changed_parameter_does_what_it_does_in_gymnasium(name: str, param: str) -> None:
    kind, make_state, id, spread = CASES[name]
    value, attributes = OTHER[name][param]
    env, reference = kind(40), gymnasium.make(id).unwrapped
    reference.reset(seed=0)
    env.action_space.seed(0)
    wide = (torch.rand(40, len(spread), generator=torch.Generator().manual_seed(1)) * 1.4 - 0.7) * torch.tensor(spread)
    action = torch.as_tensor(env.action_space.sample())
    before = env.advance(make_state(wide), action)
    env.set_params(**{param: value})
    after = env.advance(make_state(wide), action)
    changed = not torch.equal(before[0].physics, after[0].physics) or not torch.equal(before[2], after[2])
    assert changed
    for attribute, x in attributes.items():
        setattr(reference, attribute, x)
    assert_one_step_is_gymnasiums(env, reference, make_state(wide), action)


def test_gravity_of_acrobot_pulls_the_links_down() -> None:
    env = Acrobot(2, gravity=[0.0, 9.8])
    still = AcrobotState(torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2))
    following, _, _, _ = env.advance(still, torch.tensor([1, 1]))
    assert torch.equal(following.physics[0], still.physics[0])
    assert following.physics[1, 2] < 0


def test_torque_noise_of_acrobot_is_fresh_and_only_where_asked_for() -> None:
    env = Acrobot(3, torque_noise=[0.0, 1.0, 1.0], seed=0)
    rest = AcrobotState(torch.zeros(3, 4))
    spins = env.advance(rest, torch.tensor([1, 1, 1]))[0].physics[:, 3]
    assert spins[0] == 0 and spins[1] != 0 and spins[2] != 0 and spins[1] != spins[2]


OFFSETS = ("offset_position", "offset_velocity", "offset_angle", "offset_spin")


def test_offsets_of_cartpole_move_what_is_observed_and_nothing_else() -> None:
    plain, moved = CartPole(6, seed=3, max_episode_steps=20), CartPole(6, seed=3, max_episode_steps=20)
    values = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]]).repeat(3, 1)  # a copy with, one without
    moved.set_params(**dict(zip(OFFSETS, values.T, strict=True)))
    torch.testing.assert_close(moved.reset()[0], plain.reset()[0] + values)
    ended = 0
    for step in range(60):
        action = torch.full((6,), step % 2)
        expected, got = plain.step(action), moved.step(action)
        torch.testing.assert_close(got[0], expected[0] + values)
        torch.testing.assert_close(got[4]["final_obs"], expected[4]["final_obs"] + values)
        assert torch.equal(moved.state.physics, plain.state.physics)
        assert all(torch.equal(a, b) for a, b in zip(got[1:4], expected[1:4], strict=True))
        ended += int(got[4]["_final_obs"].sum())
    assert ended >= 6
    again = CartPole(6, seed=9, max_episode_steps=20)
    again.load_state_dict(moved.state_dict())
    torch.testing.assert_close(again.step(action)[0], plain.step(action)[0] + values)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_compared_with_gymnasium_or_tested_by_itself(name: str) -> None:
    alone = {"Acrobot": {"gravity", "torque_noise"}, "CartPole": set(OFFSETS)}.get(name, set())
    assert set(CASES[name][0].PARAMS) == set(OTHER[name]) | alone


@pytest.mark.parametrize("name", CASES)
def test_initial_states_and_time_limits_are_gymnasiums(name: str) -> None:
    kind, _, id, _ = CASES[name]
    env, reference = kind(2000, seed=0), gymnasium.make(id)
    inner: Any = reference.unwrapped
    env.reset()
    states = []
    for seed in range(300):
        reference.reset(seed=seed)
        states.append(np.array(inner.state, dtype=np.float64))
    expected = np.stack(states)
    np.testing.assert_allclose(env.state.physics.amin(0), expected.min(0), atol=0.05 * np.ptp(expected, 0).max() + 1e-6)
    np.testing.assert_allclose(env.state.physics.amax(0), expected.max(0), atol=0.05 * np.ptp(expected, 0).max() + 1e-6)
    assert reference.spec is not None and reference.spec.max_episode_steps == kind.MAX_EPISODE_STEPS


def test_copies_with_different_physics_do_not_disturb_each_other() -> None:
    mixed = CartPole(2, gravity=[9.8, 3.0], seed=0)
    plain = CartPole(2, seed=0)
    start = plain.reset()[0]
    mixed.reset()
    action = torch.tensor([1, 1])
    mixed_obs, plain_obs = mixed.step(action)[0], plain.step(action)[0]
    assert torch.equal(start, plain.reset(seed=0)[0])
    assert torch.equal(mixed_obs[0], plain_obs[0])
    assert not torch.equal(mixed_obs[1], plain_obs[1])


def test_a_restored_environment_keeps_its_physics() -> None:
    light, heavy = CartPole(1, seed=0), CartPole(1, masspole=5.0, seed=0)
    heavy.reset()
    light.load_state_dict(heavy.state_dict())
    action = torch.tensor([1])
    assert torch.equal(light.step(action)[0], heavy.step(action)[0])
