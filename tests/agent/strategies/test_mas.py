"""MAS: the importance against autograd sequence by sequence, and against its closed form at the heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.policy import Policy
from lifelong.agent.strategies.mas import MAS, sensitivity
from lifelong.replay.chunk import Chunk
from tests.agent.support import make_policy, make_trainer, random_chunk, run

T, B = 4, 3


def case(cell: str = "elstm") -> tuple[Policy, Chunk]:
    policy = make_policy(cell, 5).double()
    chunk = random_chunk(policy, T, B, seed=3, dtype=torch.float64)
    chunk.weight[1:, 2] = 0.0
    return policy, chunk


def norm_of(policy: Policy, chunk: Chunk, state: Tensor, value_weight: float) -> Tensor:
    """The squared norm of the outputs of every copy [B]."""
    outputs = policy.sequence(chunk, state)
    each = (outputs.policy**2).sum(-1) + value_weight * outputs.value**2
    return (each * chunk.weight).sum(0)


@pytest.mark.parametrize("cell", ["elstm", "gru"])
@pytest.mark.parametrize("value_weight", [0.0, 2.0])
def test_it_is_the_mean_over_sequences_of_the_absolute_gradient(cell: str, value_weight: float) -> None:
    policy, chunk = case(cell)
    named = dict(policy.named_parameters())
    norm_B = norm_of(policy, chunk, chunk.state, value_weight)
    expected = {n: torch.zeros_like(p) for n, p in named.items()}
    for copy in range(B):  # all copies in one forward pass, one backward pass each
        gradients = torch.autograd.grad(norm_B[copy], list(named.values()), retain_graph=True, materialize_grads=True)
        for n, gradient in zip(named, gradients, strict=True):
            expected[n] += gradient.abs()
    got = sensitivity(policy, chunk, list(named), value_weight)
    for n in named:
        torch.testing.assert_close(got[n], expected[n], rtol=1e-9, atol=1e-12)
        assert bool((got[n] > 0).any()) == (value_weight > 0 or not n.startswith("critic."))


def test_at_the_actor_it_is_twice_the_output_times_the_feature() -> None:
    policy, chunk = case()
    one = chunk.select(torch.tensor([0]))
    got = sensitivity(policy, one, ["actor.linear.weight", "actor.linear.bias"])
    with torch.no_grad():
        y = policy.cell.sequence(one.obs, one.state, one.is_init)[0][:, 0]
        f = policy.sequence(one, one.state).policy[:, 0]
    torch.testing.assert_close(got["actor.linear.weight"], (2 * f.T @ y).abs())
    torch.testing.assert_close(got["actor.linear.bias"], (2 * f.sum(0)).abs())


def whole_history(folder: Path, gradient: str) -> tuple[MAS, Any, Any]:
    spec = {"kind": "mas", "sequences": 24, "normalize": "none", "value_weight": 0.5}
    trainer = make_trainer(folder, strategy=[spec], gradient=gradient, rollout={"copies": 8, "steps": 2})
    strategy = trainer.strategies[0]
    assert isinstance(strategy, MAS)
    run(trainer, until=64)
    return strategy, trainer.context(), trainer.source


@pytest.mark.parametrize("gradient", ["rtrl", "bptt"])
def test_over_whole_episodes_it_is_a_mean_over_their_steps_with_the_history_of_the_engine(
    gradient: str, tmp_path: Path
) -> None:
    strategy, ctx, source = whole_history(tmp_path, gradient)
    strategy.consolidate(ctx, source)
    named, steps = strategy.parameters, 0.0
    expected = {n: torch.zeros_like(p) for n, p in named.items()}
    for experience in source(3):
        chunk = experience.chunk
        for copy in range(chunk.copies):
            one = chunk.select(torch.tensor([copy]))
            score = norm_of(ctx.policy, one, experience.start(copy), 0.5).sum()
            gradients = torch.autograd.grad(score, list(named.values()), materialize_grads=True)
            for n, g in zip(named, gradients, strict=True):
                expected[n] += g.abs()
        steps += float(chunk.weight.sum())
    for n, importance in strategy.importance.items():
        torch.testing.assert_close(importance, expected[n] / steps, rtol=1e-4, atol=1e-6)
        assert torch.equal(strategy.anchor[n], named[n])
    chunk = next(source(1)).chunk
    with torch.no_grad():
        for p in named.values():
            p += 0.1
    penalty = strategy.extra_loss(ctx, chunk, ctx.policy.sequence(chunk, chunk.state), 2)
    assert penalty is not None
    form = 0.5 * strategy.strength * 0.01 * sum(float(f.sum()) for f in strategy.importance.values())
    assert float(penalty.detach()) == pytest.approx(form, rel=1e-4)
