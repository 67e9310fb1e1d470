"""Spectral and Parseval regularisation against singular values, and gradients of what the papers write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.matrices import MatrixPenalty, blocks_of, matrices_of
from lifelong.agent.strategies.parseval import Parseval
from lifelong.agent.strategies.spectral import Spectral
from tests.agent.support import CELLS, make_context, make_policy, perturb

MLP: dict[str, Any] = {"encoder": {"kind": "mlp", "hidden": [5, 6]}}


def context_of(policy: Policy) -> Context:
    return make_context(policy, ActorCritic(policy.distribution), 4, 4)


def penalty(strategy: MatrixPenalty, policy: Policy) -> Tensor:
    found = strategy.extra_loss(context_of(policy), None, None, 0)  # type: ignore[arg-type]
    assert found is not None
    return found


def ready(strategy: MatrixPenalty, policy: Policy) -> MatrixPenalty:
    strategy.setup(context_of(policy), 0)
    return strategy


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_every_gate_and_head_is_a_map_of_its_own_and_what_sets_the_memory_is_none(cell: str, heads: bool) -> None:
    policy = make_policy(cell, 7, tasks=2, task_observed=True, heads="per_task", **MLP)
    found = matrices_of(policy, heads)
    maps = {name: tuple(blocks_of(p, count).shape) for name, (p, count) in found.items()}
    assert maps["encoder.layers.0.weight"] == (1, 5, 3) and maps["encoder.layers.2.weight"] == (1, 6, 5)
    shared = {f"cell.{name}" for name in policy.cell.shared_parameters()}
    sizes = {part.units for part in policy.cell.parts} if policy.cell.composite else {7}
    assert all(shape[1] in sizes for name, shape in maps.items() if name.startswith("cell.") and name not in shared)
    assert ("actor.linear.weight" in maps) == heads == ("critic.weight" in maps)
    said = policy.cell.output_size
    assert not heads or (maps["actor.linear.weight"] == (2, 3, said) and maps["critic.weight"] == (1, 1, said))
    assert not {f"cell.{name}" for name in policy.cell.time_parameters()} & set(maps)
    gates = {"elstm": 2, "diagonal_gru": 3, "diagonal_lstm": 3}
    assert cell not in gates or maps["cell.weight_input"] == (gates[cell], 7, 8)


def test_the_spectral_penalty_and_its_gradient_are_those_of_the_singular_values() -> None:
    policy = make_policy("elstm", 7, **MLP).double()
    perturb(policy)  # else the singular values of an orthogonal layer are all alike, and the largest has no gradient
    strategy = ready(Spectral(strength=0.7), policy)
    for _ in range(300):
        penalty(strategy, policy)
    got = penalty(strategy, policy)
    maps = [m for p, count in strategy.matrices.values() for m in blocks_of(p, count)]
    expected = 0.7 * sum((torch.linalg.svdvals(m)[0] ** 2 - 1) ** 2 for m in maps)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    parameters = [p for p, _ in strategy.matrices.values()]
    for mine, theirs in zip(
        torch.autograd.grad(got, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_with_nothing_else_to_learn_all_norms_come_to_one() -> None:
    policy = make_policy("gru", 7, **MLP)
    strategy = ready(Spectral(strength=1.0), policy)
    optimizer = torch.optim.SGD(policy.parameters(), 0.02)
    for _ in range(600):
        optimizer.zero_grad()
        penalty(strategy, policy).backward()
        optimizer.step()
    for parameter, count in strategy.matrices.values():
        largest = torch.linalg.svdvals(blocks_of(parameter.detach(), count))[:, 0]
        torch.testing.assert_close(largest, torch.ones_like(largest), rtol=0, atol=5e-3)


def test_a_matrix_of_zeros_does_no_harm() -> None:
    policy = make_policy("elstm", 7, **MLP)
    strategy = ready(Spectral(), policy)
    with torch.no_grad():
        policy.critic.weight.zero_()
    penalty(strategy, policy).backward()
    assert all(bool(p.grad.isfinite().all()) for p, _ in strategy.matrices.values() if p.grad is not None)
    with torch.no_grad():
        policy.critic.weight.fill_(0.5)
    assert float(strategy.norm("critic.weight", policy.critic.weight.detach()[None])) == pytest.approx(0.5 * 7**0.5)  # type: ignore[attr-defined]


def test_the_parseval_penalty_has_the_gradient_of_the_papers_and_is_zero_where_a_layer_begins_orthogonal() -> None:
    policy = make_policy("elstm", 7, **MLP).double()
    strategy = ready(Parseval(strength=0.3), policy)
    assert isinstance(strategy, Parseval)
    for name in ("encoder.layers.0.weight", "encoder.layers.2.weight"):
        assert strategy.squares[name] == pytest.approx(2.0, rel=1e-6)
        parameter, count = strategy.matrices[name]
        assert float(strategy.penalty_of(name, blocks_of(parameter, count)).detach()) < 1e-9
    with torch.no_grad():
        for parameter, _ in strategy.matrices.values():
            parameter += 0.1 * torch.randn_like(parameter)
    papers = torch.zeros((), dtype=torch.float64)
    for name, (parameter, count) in strategy.matrices.items():
        for w in blocks_of(parameter, count):
            unit = torch.eye(len(w), dtype=torch.float64)
            papers = papers + 0.3 * (w @ w.T - strategy.squares[name] * unit).square().sum()
    parameters = [p for p, _ in strategy.matrices.values()]
    mine = torch.autograd.grad(penalty(strategy, policy), parameters)
    for got, expected in zip(mine, torch.autograd.grad(papers, parameters), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_the_parseval_penalty_makes_all_singular_values_alike() -> None:
    policy = make_policy("diagonal_gru", 7, **MLP)
    strategy = ready(Parseval(strength=1.0), policy)
    assert isinstance(strategy, Parseval)
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    for _ in range(800):
        optimizer.zero_grad()
        penalty(strategy, policy).backward()
        optimizer.step()
    for name, (parameter, count) in strategy.matrices.items():
        values = torch.linalg.svdvals(blocks_of(parameter.detach(), count))
        torch.testing.assert_close(values, torch.full_like(values, strategy.squares[name] ** 0.5), rtol=0.02, atol=0)
