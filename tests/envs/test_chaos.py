"""Chaotic systems are those of dysts, in their equations and in where they go."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from lifelong.envs.errors import EnvError
from lifelong.envs.prediction.chaos import SYSTEMS, Chaos, attractor, move

THEIRS = {
    "rossler": "Rossler",
    "thomas": "Thomas",
    "halvorsen": "Halvorsen",
    "chen": "Chen",
    "dadras": "Dadras",
    "sprott_b": "SprottB",
}


def dysts(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The system of dysts, which is imported without the package that it writes files with."""
    for module in ("gluonts", "gluonts.dataset", "gluonts.dataset.arrow"):
        if "dysts.flows" not in sys.modules:
            monkeypatch.setitem(sys.modules, module, MagicMock())
    return getattr(pytest.importorskip("dysts.flows"), THEIRS[name])()


@pytest.mark.parametrize("name", SYSTEMS)
def test_velocities_are_those_of_dysts_at_a_thousand_points(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = dysts(name, monkeypatch)
    points = attractor(name)[0][:1000].double()
    ours = torch.stack(SYSTEMS[name].velocity(*points.unbind(1)), 1).numpy()
    wanted = np.array([theirs.rhs(point, 0.0) for point in points.numpy()])
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)
    assert SYSTEMS[name].period == pytest.approx(theirs.period, rel=1e-3)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_is_that_of_an_integrator_of_high_order(name: str) -> None:
    integrate = pytest.importorskip("scipy.integrate")
    env = Chaos(5, system=name, pace=[1.0, 0.5, 2.0, 0.25, 0.0])
    env.reset(seed=0)
    following = env.advance(env.state, torch.zeros(5, 3))[0]
    for b, pace in enumerate((1.0, 0.5, 2.0, 0.25, 0.0)):
        span = (0.0, pace * SYSTEMS[name].period / 50 + 1e-12)

        def flow(_: float, at: np.ndarray) -> list[float]:
            return [float(v) for v in SYSTEMS[name].velocity(*torch.from_numpy(at).unbind(0))]

        exact = integrate.solve_ivp(flow, span, env.state.point[b].double().numpy(), rtol=1e-10, atol=1e-12).y[:, -1]
        np.testing.assert_allclose(following.point[b].numpy(), exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", SYSTEMS)
def test_trajectories_stay_on_the_attractor_and_neighbours_part(name: str) -> None:
    starts, center, scale = attractor(name)
    point = torch.stack((starts[:200], starts[:200] + 1e-4 * scale)).double()
    far = move(SYSTEMS[name].velocity, point, 15 * SYSTEMS[name].period, 15 * 200)
    standard = (far[0] - center) / scale
    assert bool(standard.abs().max() < 8) and 0.5 < float(standard.std()) < 1.5
    apart = ((far[0] - far[1]) / scale).norm(dim=1)
    assert float(apart.median()) > 5e-3


def test_perfect_predictions_return_one_and_repeating_zero() -> None:
    env, other = Chaos(20, length=40), Chaos(20, length=40)
    obs, _ = env.reset(seed=3)
    other.reset(seed=3)
    for _ in range(40):
        target = env.advance(env.state, obs)[3]["target"]
        repeated = env.step(obs)[4]
        obs = repeated["final_obs"]
        perfect = other.step(target)[4]
    assert torch.allclose(perfect["episode_return"], torch.ones(20), atol=1e-5)
    assert torch.allclose(repeated["episode_return"], torch.zeros(20), atol=1e-5)


def test_another_system_is_refused() -> None:
    with pytest.raises(EnvError, match="did you mean 'rossler'"):
        Chaos(1, system="rosler")  # type: ignore[arg-type]
