"""Rebasin: another order of units is the same function, what a merge comes to, and the gradient of the orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.modules.permutations import sinkhorn
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.rebasin import Rebasin, permuted
from lifelong.agent.strategies.units import CELL, layers_of
from tests.agent.support import UNIT_CELLS, make_context, make_policy, make_trainer, random_chunk, run


@pytest.mark.parametrize("cell", UNIT_CELLS)
@torch.no_grad()
def test_units_in_another_order_are_the_same_function_of_inputs_and_of_a_memory_in_that_order(cell: str) -> None:
    policy = make_policy(cell, encoder={"kind": "mlp", "hidden": [6, 7]}).double()
    for parameter in policy.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    chunk = random_chunk(policy, 9, 3, dtype=torch.float64)
    chunk.is_init[:3] = False
    chunk.state.normal_()
    layers, generator = layers_of(policy), torch.Generator().manual_seed(2)
    before = policy.sequence(chunk, chunk.state)
    picks = {layer.name: torch.randperm(layer.size, generator=generator) for layer in layers}
    orders = {name: torch.eye(len(pick), dtype=torch.float64)[pick] for name, pick in picks.items()}
    moved = permuted({n: p.detach() for n, p in policy.named_parameters()}, layers, orders)
    shared = {f"cell.{name}" for name in policy.cell.shared_parameters()}
    for name, parameter in policy.named_parameters():
        assert name.endswith("bias") or parameter.dim() < 2 or name in shared or not torch.equal(parameter, moved[name])
        parameter.copy_(moved[name])
    state, last = chunk.state.clone(), policy.cell.unit_state
    state[:, :last] = state[:, :last].unflatten(-1, (-1, policy.cell.units))[..., picks[CELL]].flatten(1)
    after = policy.sequence(chunk, state)
    torch.testing.assert_close(after.policy, before.policy, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(after.value, before.value, rtol=1e-9, atol=1e-11)
    wrong = policy.sequence(chunk, chunk.state)
    assert float((wrong.policy - before.policy).abs().max()) > 1e-3


@pytest.mark.parametrize("cell", [{"kind": "retnet", "heads": 2}, "warp", {"kind": "stack"}])
def test_a_cell_whose_units_have_one_order_only_is_refused(cell: Any, tmp_path: Path) -> None:
    spec = {"kind": cell} if isinstance(cell, str) else cell
    with pytest.raises(ValueError, match="units"):
        make_trainer(tmp_path, policy={"cell": {"size": 6, **spec}}, strategy=["rebasin"], gradient="bptt")


def test_a_boundary_merges_what_was_learned_into_the_old_network_in_both_orders(tmp_path: Path) -> None:
    spec = {"kind": "rebasin", "share": 0.7, "temperature": 0.3, "lr": 0.5, "decay": 0.0, "every": 64}
    trainer = make_trainer(tmp_path, strategy=[spec], optimizer={"kind": "adam", "lr": 0.02})
    rebasin, policy = trainer.strategies[0], trainer.rollout.policy
    assert isinstance(rebasin, Rebasin)
    merge, seen = rebasin.consolidate, []

    def listen(ctx: Context, source: object) -> None:
        now = {n: p.detach().clone() for n, p in policy.named_parameters()}
        old = {name: value.clone() for name, value in rebasin.origin.items()}
        scores = {name: score.detach().clone() for name, score in rebasin.scores.items()}
        if old:
            rebasin.scores["cell"].data[0, 1] = rebasin.scores["cell"].data[1, 0] = 9.0  # one pair changes places
            scores = {name: score.detach().clone() for name, score in rebasin.scores.items()}
        mixed = {name: value.clone() for name, value in rebasin.mixed.items()}
        merge(ctx, source)  # type: ignore[arg-type]
        seen.append((now, old, mixed, scores, dict(rebasin.origin), rebasin.moved))

    rebasin.consolidate = listen  # type: ignore[assignment,method-assign]
    run(trainer)
    (now, old, _, _, origin, _), (then, before, mixed, scores, after, moved) = seen[:2]
    assert not old and all(torch.equal(now[n], origin[n]) for n in now)
    assert 0 < moved < 1
    hard = {}
    for name, score in scores.items():
        chosen = sinkhorn(score, 0.001, 3000).argmax(1)
        hard[name] = torch.eye(len(score))[chosen]
    other = permuted(before, layers_of(policy), hard)
    for name, value in after.items():
        delta = then[name] - mixed[name]
        torch.testing.assert_close(value, 0.7 * before[name] + 0.3 * other[name] + delta, atol=2e-6, rtol=1e-5)
    assert any(float((then[n] - mixed[n]).abs().max()) > 0.01 for n in then)


def test_the_orders_learn_down_the_gradient_of_the_loss_and_delta_is_drawn_to_zero() -> None:
    policy = make_policy("elstm").double()
    ctx = make_context(policy, ActorCritic(policy.distribution), 4, 5)
    rebasin = Rebasin(temperature=0.5, decay=0.25)
    rebasin.setup(ctx, 3)
    rebasin.consolidate(ctx, lambda chunks: iter(()))
    rebasin.optimizer = torch.optim.SGD(list(rebasin.scores.values()), 1.0)
    chunk = random_chunk(policy, 5, 4, dtype=torch.float64)
    delta = {n: 0.1 * torch.randn_like(p) for n, p in policy.named_parameters()}

    def put(scores: dict[str, Tensor]) -> Tensor:
        orders = {name: sinkhorn(score, 0.5) for name, score in scores.items()}
        with torch.no_grad():
            for name, value in rebasin.mixture(orders, 0.5).items():
                policy.get_parameter(name).copy_(value + delta[name])
        outputs = policy.sequence(chunk, chunk.state)
        return outputs.policy.square().sum() + outputs.value.sum()

    start = {name: score.detach().clone() for name, score in rebasin.scores.items()}
    loss = put(start)
    with torch.no_grad():
        rebasin.mixed = {n: p - delta[n] for n, p in policy.named_parameters()}
    for parameter in policy.parameters():
        parameter.grad = None
    loss.backward()
    deltas = {n: torch.zeros_like(p) for n, p in policy.named_parameters()}
    with torch.no_grad():
        rebasin.transform_update(ctx, deltas)
    for name, score in rebasin.scores.items():
        gradient = start[name] - score.detach()
        way = torch.randn_like(gradient)
        ahead, behind = ({**start, name: start[name] + sign * 1e-5 * way} for sign in (1, -1))
        slope = float((put(ahead) - put(behind)).detach()) / 2e-5
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-6)
    put(start)
    for name, step in deltas.items():
        moved = rebasin.mixed[name] + (1 - 0.25) * delta[name] - policy.get_parameter(name).detach()
        torch.testing.assert_close(step, moved)
