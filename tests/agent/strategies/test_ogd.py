"""OGD: stored gradients against autograd, and outputs that a projected step leaves alone to first order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies import ogd
from lifelong.agent.strategies.ogd import OGD
from tests.agent.support import act_through, make_context, make_policy, random_chunk

B, T = 6, 5


def one_counted_step(policy: Policy, seed: int = 1) -> Experience:
    """An experience in which one step of every copy counts."""
    chunk = random_chunk(policy, T, B, seed=seed)
    chunk.weight[:] = 0.0
    chunk.weight[torch.arange(B) % T, torch.arange(B)] = 1.0
    return act_through(policy, chunk)[0]


def ready(seeds: tuple[int, ...] = (1,), policy: Policy | None = None, **options: Any) -> tuple[Policy, OGD, Any]:
    policy = make_policy("elstm", 8, observation=5) if policy is None else policy
    strategy = OGD(**{"gradients": B, **options})
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T)
    strategy.setup(ctx, 0)
    for seed in seeds:
        strategy.on_task_end(ctx, lambda chunks, seed=seed: iter([one_counted_step(policy, seed)] * chunks))
    return policy, strategy, ctx


def basis(strategy: OGD) -> Tensor:
    return torch.cat([strategy._flat(look) for look in strategy.stored])


def true_gradients(policy: Policy, strategy: OGD, experience: Experience, state: Tensor) -> Tensor:
    """The gradient of the largest logit at the counted step of every copy, [B, P]."""
    said = policy.sequence(experience.chunk, state).policy
    rows = []
    for copy in range(B):
        (step,) = experience.chunk.weight[:, copy].nonzero().flatten()
        logit = said[step, copy].max()
        found = torch.autograd.grad(
            logit, list(strategy.parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([x.flatten() for x in found]))
    return torch.stack(rows)


def test_what_is_stored_spans_the_gradients_of_the_outputs_and_is_orthonormal() -> None:
    policy, strategy, _ = ready()
    stored = basis(strategy)
    assert stored.shape == (B, sum(p.numel() for p in strategy.parameters.values()))
    assert not any(name.startswith("critic") for name in strategy.parameters)
    torch.testing.assert_close(stored @ stored.T, torch.eye(B), rtol=0, atol=1e-5)
    experience = one_counted_step(policy)
    true = true_gradients(policy, strategy, experience, experience.chunk.state)
    torch.testing.assert_close(true @ stored.T @ stored, true, rtol=1e-3, atol=1e-4)


def test_under_rtrl_a_stored_gradient_has_the_history_before_its_sequence() -> None:
    """Against one graph over the history and the sequence."""
    policy = make_policy("elstm", 8, observation=5)
    long = random_chunk(policy, 2 * T, B, seed=4)
    long.is_init[:] = False
    long.is_init[0], long.is_init[2, 0], long.is_init[T, 1] = True, True, True
    past = long.map(lambda name, x, dim: x if dim == 0 or name.startswith("final_") else x[:T])
    later = long.map(lambda name, x, dim: x if dim == 0 or name.startswith("final_") else x[T:])
    engine = RTRL(policy.cell, B)
    experience, last = act_through(policy, past)
    engine.advance(engine.trace(experience.x_TBD, experience.state_TBS, past.is_init))
    later = replace(later, state=last)
    later.weight[:] = 0.0
    later.weight[-1] = 1.0
    fresh = replace(act_through(policy, later)[0], engine=engine)
    strategy = OGD(gradients=B)
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T)
    strategy.setup(ctx, 0)
    strategy.on_task_end(ctx, lambda chunks: iter([fresh]))
    whole = replace(fresh, chunk=replace(long, weight=torch.zeros(2 * T, B)))
    whole.chunk.weight[-1] = 1.0
    true = true_gradients(policy, strategy, whole, long.state)
    stored = basis(strategy)
    torch.testing.assert_close(true @ stored.T @ stored, true, rtol=1e-3, atol=1e-4)
    cut = true_gradients(policy, strategy, fresh, last)  # as truncated BPTT would have it
    assert float((cut - cut @ stored.T @ stored).norm() / cut.norm()) > 0.05


@pytest.mark.parametrize("every", [0, 64])
def test_a_projected_step_moves_old_outputs_to_second_order_only(every: int) -> None:
    policy, strategy, ctx = ready(seeds=(1, 2) if not every else (), every=every)
    if every:
        ctx = replace(ctx, step=64)
        strategy.on_clock(ctx, lambda chunks: iter([one_counted_step(policy, 1), one_counted_step(policy, 2)][:chunks]))
    g = torch.Generator().manual_seed(3)
    deltas = {n: torch.randn(p.shape, generator=g) for n, p in policy.named_parameters()}
    free = {n: d.clone() for n, d in deltas.items()}
    strategy.transform_update(ctx, deltas)
    assert 0 < strategy.report()["room"] < 1 and torch.equal(deltas["critic.weight"], free["critic.weight"])
    experience = one_counted_step(policy)

    def moved(step: dict[str, Tensor], size: float) -> float:
        """Norm of the change of the largest logit at the counted steps, in double precision."""
        double = make_policy("elstm", 8, observation=5).double()
        double.load_state_dict({name: x.double() for name, x in policy.state_dict().items()})
        chunk = experience.chunk.map(lambda name, x, dim: x.double() if x.is_floating_point() else x)
        before = double.sequence(chunk, chunk.state).policy
        index = before.argmax(-1, keepdim=True)
        for name, parameter in double.named_parameters():
            parameter.data += size * step[name].double()
        after = double.sequence(chunk, chunk.state).policy
        change = (after - before).gather(-1, index).squeeze(-1) * chunk.weight
        return float(change.detach().norm())

    assert moved(free, 1e-4) / moved(free, 1e-5) == pytest.approx(10, rel=0.2)
    assert moved(deltas, 1e-3) / moved(deltas, 1e-4) == pytest.approx(100, rel=0.3)
    assert moved(deltas, 1e-4) < 0.01 * moved(free, 1e-4)


def test_there_are_never_more_than_the_capacity_and_every_task_keeps_equally_many() -> None:
    policy, strategy, _ = ready(seeds=(1, 2, 3), capacity=6)
    assert [len(look["cell.bias"]) for look in strategy.stored] == [2, 2, 2]
    stored = basis(strategy)
    torch.testing.assert_close(stored @ stored.T, torch.eye(6), rtol=0, atol=1e-5)
    assert strategy.report()["stored"] == 6.0
    again = OGD(gradients=B, capacity=6)
    again.setup(make_context(policy, ActorCritic(policy.distribution), B, T), 0)
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(basis(again), stored)


def test_a_gradient_that_is_there_already_takes_no_place() -> None:
    _, strategy, _ = ready(seeds=(1, 1))
    assert [len(look["cell.bias"]) for look in strategy.stored] == [B, 0]


def test_continuous_actions_and_own_heads_have_gradients_too() -> None:
    import numpy as np
    from gymnasium.spaces import Box

    policy = make_policy("gru", 8, observation=5, action=Box(-1, 1, (2,), np.float32))
    policy, strategy, ctx = ready(policy=policy)
    deltas = {n: torch.ones_like(p) for n, p in policy.named_parameters()}
    strategy.transform_update(ctx, deltas)
    assert strategy.report()["stored"] > 0 and strategy.report()["room"] < 1


def test_more_than_the_machine_has_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ogd, "memory_of", lambda device: 10**6)
    with pytest.raises(ValueError, match="capacity 1000 and gradients 200 need"):
        ready(gradients=200, capacity=1000)


@pytest.mark.parametrize("options", [{"gradients": 0}, {"capacity": 0}, {"every": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        OGD(**options)
