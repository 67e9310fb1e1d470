"""Pseudo-rehearsal: what is dreamt, and that the old answers to it are held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.pseudo_rehearsal import PseudoRehearsal
from tests.agent.support import make_context, make_policy, perturb, random_chunk

T, B = 32, 400


def nothing(chunks: int) -> Any:
    raise AssertionError("nothing is asked for")


def lived(strategy: PseudoRehearsal, obs: torch.Tensor, **options: Any) -> tuple[Any, Context]:
    """A strategy that has seen `obs` [T, B, 3] and a boundary."""
    policy = make_policy(**options)
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T, segment=0)
    strategy.setup(ctx, 0)
    see(strategy, ctx, policy, obs)
    return policy, ctx


def see(strategy: PseudoRehearsal, ctx: Context, policy: Any, obs: torch.Tensor) -> None:
    chunk = random_chunk(policy, T, B)
    chunk = replace(chunk, obs=obs, is_init=torch.zeros(T, B, dtype=torch.bool))
    nobody = torch.zeros(T, B)
    strategy.after_chunk(ctx, Experience(chunk, nobody, nobody, nobody, nobody > 0))
    strategy.on_task_end(ctx, nothing)


def process(mean: list[float], rho: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """A stationary AR(1) process [T, B, 3] and its covariance."""
    generator = np.random.default_rng(seed)
    root = np.array([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.2, 2.0]])
    x = generator.standard_normal((B, 3)) @ root.T
    steps = []
    for _ in range(T):
        steps.append(x + np.array(mean))
        x = rho * x + np.sqrt(1 - rho**2) * generator.standard_normal((B, 3)) @ root.T
    return torch.tensor(np.stack(steps), dtype=torch.float32), root @ root.T


def test_dreams_have_the_mean_covariance_and_autocorrelation_of_what_was_seen() -> None:
    obs, covariance = process([1.0, -2.0, 0.5], 0.8)
    strategy = PseudoRehearsal()
    lived(strategy, obs)
    (task,) = strategy.tasks
    assert task["rho"] == pytest.approx(0.8, abs=0.03)
    root = task["factor"].numpy()
    np.testing.assert_allclose(root @ root.T, covariance, atol=0.3)
    dreamt = strategy.dream(4000).obs.double().numpy()
    assert dreamt.shape == (T, 4000, 3)
    np.testing.assert_allclose(dreamt.mean((0, 1)), task["mean"].numpy(), atol=0.05)
    flat = dreamt - dreamt.mean((0, 1))
    for t in (0, T - 1):  # stationary: the first step and the last
        np.testing.assert_allclose(np.cov(flat[t].T), root @ root.T, atol=0.35)
    lag = (flat[1:] * flat[:-1]).mean((0, 1)) / flat.var((0, 1))
    np.testing.assert_allclose(lag, task["rho"], atol=0.03)


def test_every_task_that_ended_is_dreamt_of_as_often() -> None:
    strategy = PseudoRehearsal()
    policy, ctx = lived(strategy, process([8.0, 0, 0], 0.5)[0])
    see(strategy, ctx, policy, process([-8.0, 0, 0], 0.5, seed=1)[0])
    first = strategy.dream(4000).obs[..., 0].mean(0)
    assert 0.45 < float((first > 0).double().mean()) < 0.55
    assert float(first.abs().mean()) == pytest.approx(8.0, abs=0.5)


def test_it_holds_the_answers_of_the_policy_of_the_boundary() -> None:
    strategy = PseudoRehearsal(strength=2.0, value_weight=0.3, batch=16)
    obs, _ = process([1.0, -2.0, 0.5], 0.8)
    policy, ctx = lived(strategy, obs, previous_action=True, previous_reward=True)
    chunk = random_chunk(policy, T, 4)
    outputs = policy.sequence(chunk, chunk.state)
    loss = strategy.extra_loss(ctx, chunk, outputs, 4)
    assert loss is not None and float(loss.detach()) == pytest.approx(0.0, abs=1e-9)
    perturb(policy)
    state = strategy.generator.get_state()
    loss = strategy.extra_loss(ctx, chunk, outputs, 4)
    strategy.generator.set_state(state)
    inputs, old = strategy.dream(16), strategy.old
    assert old is not None and inputs.previous_action.shape == (T, 16, 3) and not inputs.previous_action[0].any()
    # step by step, from an empty memory
    kl = value = 0.0
    states = [each.cell.initial_state(16) for each in (old, policy)]
    no = torch.zeros(16, dtype=torch.bool)
    for t in range(T):
        now = replace(inputs, **{name: x[t] for name, x in vars(inputs).items()})
        with torch.no_grad():
            a, b = (each.step(now, s, no) for each, s in zip((old, policy), states, strict=True))
        states = [a.state_BS, b.state_BS]
        p, q = (torch.distributions.Categorical(logits=x.outputs.policy) for x in (a, b))
        kl += float(torch.distributions.kl_divergence(p, q).mean()) / T
        value += float((a.outputs.value - b.outputs.value).square().mean()) / T
    assert loss is not None and float(loss.detach()) == pytest.approx(2.0 * (kl + 0.3 * value), rel=1e-4)
    before = float(loss.detach())
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = strategy.extra_loss(ctx, chunk, outputs, 4)
        assert loss is not None
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * before


def test_dreamt_observations_lie_in_the_space_and_are_of_its_type() -> None:
    space = gymnasium.spaces.MultiDiscrete([3, 4, 2])
    strategy = PseudoRehearsal()
    obs = torch.stack([torch.randint(n, (T, B)) for n in (3, 4, 2)], -1)
    policy, _ = lived(strategy, obs, observation=space, encoder={"kind": "mlp", "hidden": [4]})
    dreamt = strategy.dream(500).obs
    assert dreamt.dtype == obs.dtype and policy.encode(strategy.dream(3)).shape[:2] == (T, 3)
    assert dreamt.amin((0, 1)).tolist() == [0, 0, 0] and dreamt.amax((0, 1)).tolist() == [2, 3, 1]
