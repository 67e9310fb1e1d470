"""Activity: the loss against its definition over every pair of steps, and that training makes activity smaller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.strategies.activity import Activity
from tests.agent.support import make_context, make_policy, make_trainer, random_chunk, run


def test_the_loss_is_the_mean_size_and_the_mean_change_within_episodes() -> None:
    policy = make_policy("gru").double()
    chunk = random_chunk(policy, 6, 3, dtype=torch.float64)
    chunk.is_init[:] = False
    chunk.is_init[0], chunk.is_init[3, 1] = True, True
    chunk.weight[2, 0] = 0.0
    ctx = make_context(policy, ActorCritic(policy.distribution), 3, 6)
    outputs = policy.sequence(chunk, chunk.state)
    y = outputs.features.detach() if outputs.features is not None else None
    assert y is not None
    size = change = 0.0
    for t in range(6):
        for b in range(3):
            weight = float(chunk.weight[t, b])
            size += weight * float((y[t, b] ** 2).mean())
            if t and not chunk.is_init[t, b]:
                change += weight * float(((y[t, b] - y[t - 1, b]) ** 2).mean())
    steps = float(chunk.weight.sum())
    loss = Activity(alpha=0.7, beta=3.0).extra_loss(ctx, chunk, outputs, 3)
    assert loss is not None and float(loss.detach()) == pytest.approx(0.7 * size / steps + 3.0 * change / steps)


@pytest.mark.parametrize("name", ["size", "change"])
def test_a_weight_makes_what_it_weighs_smaller(name: str, tmp_path: Path) -> None:
    def after(weight: float) -> float:
        spec = {"kind": "activity", "alpha": 0.0, "beta": 0.0, {"size": "alpha", "change": "beta"}[name]: weight}
        trainer = make_trainer(tmp_path / str(weight), strategy=[spec], optimizer={"kind": "adam", "lr": 0.03})
        return run(trainer).seen[f"strategy/activity/{name}"]

    assert after(30.0) < 0.8 * after(0.0)
