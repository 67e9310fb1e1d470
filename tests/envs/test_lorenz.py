"""Lorenz: the trajectory is that of another integrator, and the return says how good a prediction is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from lifelong.envs.prediction.lorenz import CENTER, DEFAULTS, SCALE, Lorenz, starts


@pytest.mark.parametrize("dt", [0.005, 0.02, 0.05])
def test_the_trajectory_is_that_of_an_integrator_of_high_order(dt: float) -> None:
    constants = {"sigma": [10.0, 12.0], "rho": [28.0, 35.0], "beta": [8 / 3, 2.0]}
    env = Lorenz(2, dt=dt, seed=0, **constants)
    env.reset()
    first, seen = env.state.point.clone(), []
    for _ in range(20):
        seen.append(env.state.point)
        env.step(torch.zeros(2, 3))
    for copy in range(2):
        sigma, rho, beta = (constants[name][copy] for name in ("sigma", "rho", "beta"))

        def flow(_: float, p: np.ndarray, s: float = sigma, r: float = rho, b: float = beta) -> list[float]:
            return [s * (p[1] - p[0]), p[0] * (r - p[2]) - p[1], p[0] * p[1] - b * p[2]]

        times = dt * np.arange(20)
        true = solve_ivp(flow, (0, times[-1]), first[copy].double().numpy(), "DOP853", times, rtol=1e-10, atol=1e-10).y
        error = np.abs(torch.stack(seen)[:, copy].numpy() - true.T)
        assert error.max() < 5e-3


def test_episodes_begin_on_the_attractor_and_observations_are_standardised_there() -> None:
    points = starts().double()
    assert points.std(0).tolist() == pytest.approx(SCALE, rel=0.05)
    assert points.mean(0).tolist() == pytest.approx(CENTER, abs=0.5)
    env = Lorenz(500, seed=1)
    obs, _ = env.reset()
    assert obs.mean(0).abs().max() < 0.2 and (obs.std(0) - 1).abs().max() < 0.2
    assert tuple(Lorenz.PARAMS[name].default for name in ("sigma", "rho", "beta")) == DEFAULTS


def test_the_return_is_one_for_the_truth_and_zero_for_what_is_seen_already() -> None:
    env, twin = Lorenz(4, length=15, seed=3), Lorenz(4, length=15, seed=3)
    obs, _ = env.reset()
    twin.reset()
    for t in range(15):
        after = twin.step(obs)[4]["target"]  # the same trajectory, one step ahead
        action = torch.where(torch.tensor([True, False, False, True])[:, None], after, obs)
        action[2] = 50.0
        obs, _, terminated, _, info = env.step(action)
        torch.testing.assert_close(info["target"], after)
        assert info["target_mask"].all() and terminated.all() == (t == 14)
    torch.testing.assert_close(info["episode_return"], torch.tensor([1.0, 0.0, -1.0, 1.0]))


def test_the_target_is_the_next_observation() -> None:
    env = Lorenz(3, length=5, seed=0)
    env.reset()
    for _ in range(4):
        obs, _, _, _, info = env.step(torch.zeros(3, 3))
        assert torch.equal(obs, info["target"])
