"""CPR: the shares and moves of its formulas, written out entry by entry."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.strategies.cpr import CPR
from lifelong.agent.strategies.units import layers_of
from tests.agent.support import UNIT_CELLS, make_context, make_policy, make_trainer, run

SQUARE: dict[str, Any] = {"encoder": {"kind": "mlp", "hidden": [5, 6]}}


@pytest.mark.parametrize("cell", UNIT_CELLS)
def test_units_go_back_by_a_share_that_falls_with_their_gradient(cell: str) -> None:
    policy = make_policy(cell, 6, **SQUARE)
    ctx = make_context(policy, ActorCritic(policy.distribution), 4, 4)
    strategy = CPR(rate=0.4, sharpness=4.0, threshold=0.9, decay=0.5, period=2)
    strategy.setup(ctx, 0)
    fresh = policy.redrawn(copy.deepcopy(strategy.generator))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    elementwise = {f"cell.{name}" for name in policy.cell.elementwise_parameters()}
    layers = layers_of(policy)
    utility = {(layer.name, unit): 1.0 for layer in layers for unit in range(layer.size)}
    for seed in range(2):
        g = torch.Generator().manual_seed(seed)
        gradients = {name: torch.randn(p.shape, generator=g) for name, p in before.items()}
        strategy.transform_gradients(ctx, gradients)
        for layer in layers:
            means = []
            for unit in range(layer.size):
                heard: list[Tensor] = []
                for part in layer.incoming:
                    if before[part.parameter].dim() > 1 and part.parameter not in elementwise:
                        index = part.of(torch.tensor([unit]))
                        heard.append(gradients[part.parameter].index_select(part.dim, index).flatten().abs())
                means.append(float(torch.cat(heard).mean()))
            for unit in range(layer.size):
                score = means[unit] / (sum(means) / len(means))
                utility[layer.name, unit] = 0.5 * utility[layer.name, unit] + 0.5 * score
        if seed == 0:
            strategy.after_update(ctx)
            assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    strategy.after_update(ctx)
    expected = {name: p.clone() for name, p in before.items()}
    share = {key: 0.4 * min(1.0, 2 / (1 + math.exp(4.0 * (u - 0.9)))) for key, u in utility.items()}
    for way in ("incoming", "outgoing"):
        for layer in layers:
            for unit in range(layer.size):
                p = share[layer.name, unit]
                for part in getattr(layer, way):
                    name, index = part.parameter, part.of(torch.tensor([unit]))
                    if before[name].dim() < 2 or name in elementwise:
                        continue
                    now = expected[name].index_select(part.dim, index)
                    to = fresh[name].index_select(part.dim, index) if way == "incoming" else torch.zeros_like(now)
                    expected[name].index_copy_(part.dim, index, (1 - p) * now + p * to)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-6)
    time = {f"cell.{name}" for name in policy.cell.time_parameters()}
    assert all(torch.equal(policy.get_parameter(name), before[name]) for name in time)
    assert all(bool((u == 1).all()) for u in strategy.utility.values())
    assert strategy.report()["lost"] == pytest.approx(sum(share.values()) / len(share), rel=1e-4)


def test_a_period_is_counted_in_updates(tmp_path: Path) -> None:
    objective = {"kind": "ppo", "epochs": 2, "minibatches": 2}
    trainer = make_trainer(tmp_path, strategy=[{"kind": "cpr", "period": 10}], objective=objective)
    assert run(trainer).seen["strategy/cpr/resets"] == 4.0  # of 48 updates
