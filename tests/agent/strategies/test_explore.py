"""Explore: the weight over time, the loss against its definition, live copies only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.strategies.explore import Explore
from tests.agent.support import make_context, make_policy, make_trainer, random_chunk, run


def test_the_weight_falls_to_zero_after_every_boundary_but_the_first() -> None:
    policy = make_policy("elstm")
    ctx = make_context(policy, ActorCritic(policy.distribution), 4, 4)
    explore = Explore(weight=0.5, steps=100)
    explore.on_task_start(ctx)
    assert explore.weight_at(0) == 0.0
    explore.on_task_start(replace(ctx, segment=1, step=1000))
    assert [explore.weight_at(step) for step in (1000, 1050, 1100, 5000)] == [0.5, 0.25, 0.0, 0.0]
    clocked = Explore(weight=0.5, steps=100, every=400)
    assert [clocked.weight_at(step) for step in (0, 399, 400, 450, 825)] == [0.0, 0.0, 0.5, 0.25, 0.375]
    assert not clocked.needs_boundaries and explore.needs_boundaries


def test_the_loss_is_minus_the_weighted_mean_entropy_of_live_copies() -> None:
    policy = make_policy("elstm").double()
    chunk = random_chunk(policy, 5, 4, dtype=torch.float64)
    chunk.weight[1, 2] = 0.0
    explore = Explore(weight=0.3, steps=10)
    ctx = make_context(policy, ActorCritic(policy.distribution), 4, 5, step=5)
    explore.begun = 0
    outputs = policy.sequence(chunk, chunk.state)
    loss = explore.extra_loss(ctx, chunk, outputs, live=3)
    p = torch.softmax(outputs.policy, -1)
    entropy_TB = -(p * p.log()).sum(-1) * chunk.weight
    assert loss is not None
    torch.testing.assert_close(loss, -0.15 * entropy_TB[:, :3].sum() / chunk.weight.sum())
    explore.begun = None
    assert explore.extra_loss(ctx, chunk, outputs, live=3) is None


def test_entropy_rises_after_a_boundary(tmp_path: Path) -> None:
    def entropy(name: str, weight: float) -> float:
        spec = [{"kind": "explore", "weight": weight, "steps": 1_000_000}]
        return run(make_trainer(tmp_path / name, strategy=spec, optimizer={"kind": "adam", "lr": 0.05})).seen[
            "loss/entropy"
        ]

    assert entropy("much", 1.0) > entropy("none", 0.0) + 0.01


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"steps": 0}, {"every": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        Explore(**options)
