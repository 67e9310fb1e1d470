"""A hundred steps of Adam and AdamW on other data do not touch what old inputs are answered with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.registry import load
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.projection import BasisProjection
from tests.agent.strategies.test_taps import B, T, old_experience, policy_with
from tests.agent.support import act_through, make_context, random_chunk

#: options under which all of the old inputs is protected
EXACT: dict[str, dict[str, Any]] = {
    "gpm": {"threshold": 1 - 1e-13, "chunks": 1},
    "trgp": {"threshold": 1 - 1e-13, "chunks": 1, "trust": 0.01},
    "hlop": {"threshold": 1.0, "per_task": 0.6, "rate": 1.0},
}
OPTIMIZERS: dict[str, Any] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, 1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1),
}


def after_old_task(kind: str, policy: Policy, old: Experience) -> tuple[BasisProjection, Any]:
    """The strategy when the task of `old` has ended and the next one has begun."""
    strategy: BasisProjection = load("strategy", kind)(**EXACT[kind])
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T, task=0)
    strategy.setup(ctx, 0)
    strategy.on_task_start(ctx)
    for _ in range(400 if kind == "hlop" else 0):
        strategy.after_chunk(ctx, old)
    strategy.on_task_end(ctx, lambda chunks: iter([old] * chunks))
    ctx = make_context(policy, ctx.objective, B, T, task=1)
    strategy.on_task_start(ctx)
    return strategy, ctx


def train(policy: Policy, strategy: BasisProjection, ctx: Any, make: Any, steps: int = 100) -> None:
    """Steps of the optimiser on other data, through the real learner."""
    engine: Any = (RTRL if policy.cell.jacobian in RTRL.jacobians else BPTT)(policy.cell, B)  # type: ignore[arg-type]
    learner = Learner(policy, engine, ctx.objective, make(policy.parameters()), [strategy], 1.0, torch.Generator())
    for step in range(steps):
        learner.update(ctx, act_through(policy, random_chunk(policy, T, B, seed=100 + step))[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cell", ["elstm", "gru"])
@pytest.mark.parametrize("kind", EXACT)
def test_the_move_of_a_layer_does_not_lean_into_what_is_protected(kind: str, cell: str, optimizer: str) -> None:
    """|dW X| / (|dW| |X|) < 1e-5. For HLOP, X is what its rows reproduce of the old inputs; how near they come to
    the old inputs is another test's business."""
    policy = policy_with(cell, "mlp")
    old = old_experience(policy)
    strategy, ctx = after_old_task(kind, policy, old)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    with torch.no_grad():
        said = policy.sequence(old.chunk, old.chunk.state).policy
    vectors = strategy.taps.vectors(old)
    train(policy, strategy, ctx, OPTIMIZERS[optimizer])
    found: dict[str, float] = {}
    with strategy.evaluation_view(ctx, 0):
        moves = {n: p.detach() - before[n] for n, p in policy.named_parameters()}
        with torch.no_grad():
            again = policy.sequence(old.chunk, old.chunk.state).policy
    for tap, read in vectors.items():
        move, basis = strategy.taps.joint(tap, moves).double(), strategy.protected[tap].double()
        assert move.norm() > 1e-3, f"{tap} was not trained at all"
        x: Tensor = read.double() @ basis @ basis.T if kind == "hlop" else read.double()
        found[tap] = float((move @ x.T).norm() / (move.norm() * x.norm()))
    print(f"\nlargest leak {max(found.values()):.1e}")
    assert max(found.values()) < 1e-5, found
    torch.testing.assert_close(again, said, rtol=0, atol=2e-2 if kind == "hlop" else 1e-4)
