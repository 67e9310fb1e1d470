"""UPGD: utilities and scaled steps against sums written out, and against what a weight is really worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.units import layers_of
from lifelong.agent.strategies.upgd import UPGD
from tests.agent.support import UNIT_CELLS, make_context, make_policy, make_trainer, random_chunk, run

#: as many features as the cell has units, and as it has inputs: shapes alone do not tell rows from columns
SQUARE: dict[str, Any] = {"encoder": {"kind": "mlp", "hidden": [5, 6]}}


def context_of(policy: Policy, lr: float = 0.5) -> Context:
    optimizer = torch.optim.SGD(policy.parameters(), lr)
    return make_context(policy, ActorCritic(policy.distribution), 4, 4, optimizer=optimizer)


def gradients_of(policy: Policy, seed: int = 0) -> dict[str, Tensor]:
    """Of some loss."""
    chunk = random_chunk(policy, 3, 4, seed)
    outputs = policy.sequence(chunk, torch.ones_like(chunk.state))
    loss = outputs.policy.square().mean() + (outputs.value - 1).square().mean()
    named = dict(policy.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def test_a_step_is_scaled_by_the_running_utility_of_its_weight() -> None:
    policy = make_policy("elstm", 6, **SQUARE)
    strategy, ctx = UPGD(sigma=0.0, decay=0.9), context_of(policy)
    strategy.setup(ctx, 0)
    mean = {name: torch.zeros_like(p) for name, p in policy.named_parameters()}
    for seed in range(5):
        gradients = gradients_of(policy, seed)
        strategy.transform_gradients(ctx, gradients)
        for name, parameter in policy.named_parameters():
            mean[name] = 0.9 * mean[name] - 0.1 * gradients[name] * parameter.detach()
    deltas = {name: torch.randn_like(p) for name, p in policy.named_parameters()}
    expected, largest = {}, max(float(u.max()) for u in mean.values())
    for name, utility in mean.items():
        expected[name] = deltas[name] * 2 * (1 - torch.sigmoid(utility / largest))
    strategy.transform_update(ctx, deltas)
    for name, delta in deltas.items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-5, atol=1e-6)
    assert strategy.report()["largest_utility"] == pytest.approx(largest / (1 - 0.9**5), rel=1e-5)


def test_the_utility_is_to_first_order_what_the_loss_would_rise_without_the_weight() -> None:
    policy = make_policy("gru", 6, **SQUARE).double()
    strategy, ctx = UPGD(), context_of(policy)
    strategy.setup(ctx, 0)
    chunk = random_chunk(policy, 3, 4, dtype=torch.float64)

    def loss() -> Tensor:
        outputs = policy.sequence(chunk, chunk.state)
        return outputs.policy.square().mean() + outputs.value.square().mean()

    weight = policy.actor.linear.weight
    with torch.no_grad():
        weight[0, 0] = 1e-4  # so small that the first order is all
    named = dict(policy.named_parameters())
    strategy.transform_gradients(ctx, dict(zip(named, torch.autograd.grad(loss(), list(named.values())), strict=True)))
    before = float(loss().detach())
    with torch.no_grad():
        weight[0, 0] = 0.0
    rise = float(loss().detach()) - before
    assert float(strategy.utility["actor.linear.weight"][0, 0]) / (1 - 0.999) == pytest.approx(rise, rel=1e-2)


def test_the_noise_has_its_size_and_spares_what_sets_the_memory() -> None:
    policy = make_policy("gru", 40, observation=30)
    strategy, ctx = UPGD(sigma=0.2), context_of(policy, lr=0.5)
    strategy.setup(ctx, 0)
    strategy.transform_gradients(ctx, {name: torch.zeros_like(p) for name, p in policy.named_parameters()})
    deltas = {name: torch.zeros_like(p) for name, p in policy.named_parameters()}
    strategy.transform_update(ctx, deltas)
    still = {name for name, delta in deltas.items() if not bool(delta.any())}
    assert still == {f"cell.{name}" for name in policy.cell.time_parameters()}
    assert float(deltas["cell.hidden.weight"].std()) == pytest.approx(0.5 * 0.2, rel=0.05)


@pytest.mark.parametrize("cell", UNIT_CELLS)
def test_the_utility_of_a_unit_is_that_of_what_reads_it_and_scales_what_it_hears(cell: str) -> None:
    policy = make_policy(cell, 6, **SQUARE)
    strategy, ctx = UPGD(sigma=0.0, per="unit"), context_of(policy)
    strategy.setup(ctx, 0)
    gradients = gradients_of(policy)
    strategy.transform_gradients(ctx, gradients)
    deltas = {name: torch.ones_like(p) for name, p in policy.named_parameters()}
    strategy.transform_update(ctx, deltas)
    worth: dict[tuple[str, int], float] = {}
    for layer in layers_of(policy):
        for unit in range(layer.size):
            total = 0.0
            for part in layer.outgoing:
                parameter = policy.get_parameter(part.parameter)
                index = part.of(torch.tensor([unit]))
                product = -gradients[part.parameter] * parameter.detach()
                total += float(product.index_select(part.dim, index).sum())
            worth[layer.name, unit] = total
    largest = max(worth.values())
    for layer in layers_of(policy):
        for unit in range(layer.size):
            factor = 2 * (1 - torch.sigmoid(torch.tensor(worth[layer.name, unit] / largest)))
            for part in layer.incoming:
                got = deltas[part.parameter].index_select(part.dim, part.of(torch.tensor([unit])))
                torch.testing.assert_close(got, factor.expand_as(got), rtol=1e-3, atol=1e-4)
    for name in ("actor.linear.weight", "actor.linear.bias", "critic.weight"):
        assert bool((deltas[name] == 1).all())


def test_the_utility_of_what_begins_anew_is_zero(tmp_path: Path) -> None:
    strategy = [{"kind": "continual_backprop", "rate": 0.5, "maturity": 0}, {"kind": "upgd"}]
    trainer = make_trainer(tmp_path, strategy=strategy)
    upgd, gone = trainer.strategies[1], []
    assert isinstance(upgd, UPGD)
    on_reset = upgd.on_reset

    def listen(ctx: Context, entries: Any) -> None:
        assert all(bool(upgd.utility[name].any()) for name in ("cell.weight_input", "actor.linear.weight"))
        on_reset(ctx, entries)
        gone.extend(bool(upgd.utility[name][mask].any()) for name, mask in entries.items())

    upgd.on_reset = listen  # type: ignore[method-assign]
    run(trainer)
    assert gone and not any(gone)
