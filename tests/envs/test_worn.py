"""Classic tasks that wear out: delay, friction, motor and sensors do what they say to the task itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lifelong.envs.tasks import environment_class

NAMES = ("CartPole", "Acrobot", "MountainCar", "Pendulum")


def pair(name: str, copies: int = 64, **params: Any) -> tuple[Any, Any]:
    """A worn task and the task itself."""
    worn, plain = environment_class(f"Worn{name}")(copies, **params), environment_class(name)(copies)
    worn.reset(seed=1)
    plain.reset(seed=2)
    worn.action_space.seed(3)
    return worn, plain


def actions_of(env: Any, steps: int) -> list[torch.Tensor]:
    return [torch.as_tensor(env.action_space.sample()) for _ in range(steps)]


@pytest.mark.parametrize("name", NAMES)
def test_without_wear_it_is_the_task_itself(name: str) -> None:
    worn, plain = pair(name)
    state = worn.state
    for action in actions_of(worn, 30):
        wanted, reward, over, _ = plain.advance(worn.STATE(state.physics), action)
        assert torch.equal(worn.observe(state), plain.observe(worn.STATE(state.physics)))
        state, got, ended, _ = worn.advance(state, action)
        assert torch.equal(state.physics, wanted.physics) and torch.equal(got, reward) and torch.equal(ended, over)


@pytest.mark.parametrize("name", NAMES)
def test_an_action_acts_after_its_delay_which_may_change_on_the_way(name: str) -> None:
    delays = torch.arange(64) % 9
    worn, plain = pair(name, delay=delays.tolist())
    state, given = worn.state, actions_of(worn, 25)
    idle = torch.full_like(given[0], worn.IDLE)
    for t in range(25):
        if t == 15:
            delays = (delays + 3) % 9
            worn.set_params(delay=delays.tolist())
        acts = torch.stack([(given[t - d] if t >= d else idle)[b] for b, d in enumerate(delays.tolist())])
        wanted = plain.advance(worn.STATE(state.physics), acts)[0]
        state = worn.advance(state, given[t])[0]
        assert torch.equal(state.physics, wanted.physics), t


@pytest.mark.parametrize("name", NAMES)
def test_friction_takes_its_share_of_the_velocities_alone(name: str) -> None:
    worn, plain = pair(name, friction=0.25)
    action = actions_of(worn, 1)[0]
    wanted = plain.advance(worn.STATE(worn.state.physics), action)[0].physics.clone()
    wanted[:, list(worn.VELOCITIES)] *= 0.75
    assert torch.equal(worn.advance(worn.state, action)[0].physics, wanted)


def test_the_motor_of_the_pendulum_makes_its_gain_of_the_torque() -> None:
    worn, plain = pair("Pendulum", gain=-0.5)
    action = actions_of(worn, 1)[0]
    got = worn.advance(worn.state, action)[0].physics
    assert torch.equal(got, plain.advance(worn.STATE(worn.state.physics), -0.5 * action)[0].physics)


@pytest.mark.parametrize("name", NAMES)
def test_sensors_are_shifted_by_constants_of_a_seed_and_noise_is_fresh(name: str) -> None:
    worn, plain = pair(name, copies=4000, noise=0.3, offset=2.0, offset_seed=7)
    state = worn.state
    shown = worn.observe(state) - plain.observe(worn.STATE(state.physics))
    shift = shown.mean(0)
    assert torch.allclose(shown.std(0), torch.full_like(shift, 0.3), atol=0.02)
    worn.set_params(noise=0.0)
    exact = worn.observe(state) - plain.observe(worn.STATE(state.physics))
    assert torch.allclose(exact, exact[0].expand_as(exact), atol=1e-5) and torch.allclose(shift, exact[0], atol=0.03)
    worn.set_params(offset_seed=8)
    other = worn.observe(state) - plain.observe(worn.STATE(state.physics))
    assert not torch.allclose(other, exact, atol=0.1)
    following = worn.advance(state, actions_of(worn, 1)[0])[0]
    assert abs(float(torch.corrcoef(torch.stack((state.noise[:, 0], following.noise[:, 0])))[0, 1])) < 0.06


def test_constants_have_the_spread_of_their_offset() -> None:
    env = environment_class("WornCartPole")(2000, offset=2.0, offset_seed=list(range(2000)))
    env.reset(seed=0)
    shift = env.observe(env.state) - env.state.physics
    assert torch.allclose(shift.std(0), torch.full((4,), 2.0), atol=0.15)
