"""The learner: minibatches, and what it says of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.objectives.base import Metrics
from lifelong.agent.objectives.ppo import PPO
from lifelong.agent.policy import Outputs
from lifelong.agent.runtime.learner import Learner
from lifelong.replay.chunk import Chunk
from tests.agent.support import act_through, make_context, make_policy, random_chunk

T = 5


class Watched(PPO):
    """PPO that remembers every minibatch and its losses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, normalize_advantage=False, **options)
        self.seen: list[Chunk] = []
        self.losses: list[dict[str, float]] = []

    def loss(self, outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(outputs, chunk, prepared)
        self.seen.append(chunk)
        self.losses.append({name: float(x) for name, x in {"total": loss.detach(), **metrics}.items()})
        return loss, metrics


def learn(copies: int, epochs: int, minibatches: int, lr: float = 0.1) -> tuple[Watched, dict[str, float], Chunk]:
    policy = make_policy(size=6, seed=1)
    objective = Watched(policy.distribution, epochs=epochs, minibatches=minibatches)
    optimizer = torch.optim.SGD(policy.parameters(), lr)
    generator = torch.Generator().manual_seed(0)
    learner = Learner(policy, BPTT(policy.cell, copies), objective, optimizer, [], 0.5, generator)
    experience, _ = act_through(policy, random_chunk(policy, T, copies))
    metrics, _ = learner.update(make_context(policy, objective, copies, T), experience)
    return objective, {name: float(x) for name, x in metrics.items()}, experience.chunk


@pytest.mark.parametrize(("copies", "minibatches"), [(9, 4), (10, 4), (8, 8), (7, 5), (13, 6), (6, 1)])
def test_there_are_as_many_minibatches_as_asked_and_their_sizes_differ_by_at_most_one(
    copies: int, minibatches: int
) -> None:
    objective, _, chunk = learn(copies, 2, minibatches)
    assert len(objective.seen) == 2 * minibatches
    for epoch in range(2):
        batches = objective.seen[epoch * minibatches : (epoch + 1) * minibatches]
        sizes = [batch.copies for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        first = torch.cat([batch.reward[0] for batch in batches])  # every copy once
        assert torch.equal(first.sort().values, chunk.reward[0].sort().values)


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (1, 4), (3, 1), (2, 3)])
def test_what_is_logged_of_a_chunk_is_the_mean_over_all_its_minibatches(epochs: int, minibatches: int) -> None:
    objective, metrics, _ = learn(8, epochs, minibatches)
    assert len(objective.losses) == epochs * minibatches
    for name in objective.losses[0]:
        mean = sum(losses[name] for losses in objective.losses) / len(objective.losses)
        assert metrics[f"loss/{name}"] == pytest.approx(mean, rel=1e-5, abs=1e-7), name
    if epochs * minibatches > 1:
        assert metrics["loss/total"] != pytest.approx(objective.losses[-1]["total"], rel=1e-4)


def test_equal_minibatches_of_parameters_that_stand_still_have_the_loss_of_the_whole_chunk() -> None:
    _, whole, _ = learn(8, 1, 1, lr=0.0)
    _, parts, _ = learn(8, 1, 4, lr=0.0)
    for name in ("total", "policy", "value", "entropy"):
        assert parts[f"loss/{name}"] == pytest.approx(whole[f"loss/{name}"], rel=1e-4, abs=1e-6), name
