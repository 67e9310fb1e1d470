"""L2 and L2 Init: the penalty is the squared distance from the parameters at the last boundary, or at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Strategy
from lifelong.agent.strategies.l2 import L2
from lifelong.agent.strategies.l2_init import L2Init
from tests.agent.support import make_context, make_policy, make_trainer, random_chunk, run


def begun(strategy: Strategy) -> tuple[Policy, Any]:
    policy = make_policy("elstm", 5).double()
    ctx = make_context(policy, ActorCritic(policy.distribution), 2, 2)
    strategy.setup(ctx, 0)
    return policy, ctx


def penalty_of(strategy: Strategy, policy: Policy, ctx: Any) -> Tensor | None:
    chunk = random_chunk(policy, 2, 2, dtype=torch.float64)
    return strategy.extra_loss(ctx, chunk, policy.sequence(chunk, chunk.state), 2)


def shifted(policy: Policy, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shift = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in policy.named_parameters()}
    with torch.no_grad():
        for n, p in policy.named_parameters():
            p += shift[n]
    return shift


def check(strategy: Strategy, policy: Policy, ctx: Any, strength: float, shift: dict[str, Tensor]) -> None:
    """Value and gradient of strength/2 * |shift|^2."""
    penalty = penalty_of(strategy, policy, ctx)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(strength / 2 * sum(float(s.square().sum()) for s in shift.values()))
    named = dict(policy.named_parameters())
    gradients = torch.autograd.grad(penalty, list(named.values()), materialize_grads=True)
    for n, gradient in zip(named, gradients, strict=True):
        torch.testing.assert_close(gradient, strength * shift[n] if n in shift else torch.zeros_like(gradient))


@pytest.mark.parametrize("critic", [True, False])
def test_l2_init_is_zero_at_the_start_and_the_squared_distance_from_it_ever_after(critic: bool) -> None:
    strategy = L2Init(strength=0.3, critic=critic)
    policy, ctx = begun(strategy)
    at_start = penalty_of(strategy, policy, ctx)
    assert at_start is not None and float(at_start.detach()) == 0.0 and not strategy.needs_boundaries
    shift = shifted(policy)
    strategy.on_task_end(ctx, lambda chunks: iter(()))  # boundaries are nothing to it
    check(strategy, policy, ctx, 0.3, {n: s for n, s in shift.items() if critic or not n.startswith("critic.")})


def test_l2_is_nothing_before_the_first_boundary_and_then_the_squared_distance_from_the_last() -> None:
    strategy = L2(strength=0.3)
    policy, ctx = begun(strategy)
    assert penalty_of(strategy, policy, ctx) is None
    for seed in (1, 2):
        strategy.on_task_end(ctx, lambda chunks: iter(()))
        shift = shifted(policy, seed)
        check(strategy, policy, ctx, 0.3, {n: s for n, s in shift.items() if not n.startswith("critic.")})


def test_a_strong_l2_init_keeps_the_parameters_where_the_run_began(tmp_path: Path) -> None:
    moved = {}
    for strength in (0.0, 100.0):
        spec = {"kind": "l2_init", "strength": strength}
        trainer = make_trainer(tmp_path / str(strength), strategy=[spec], optimizer={"kind": "sgd", "lr": 5e-3})
        start = {n: p.clone() for n, p in trainer.rollout.policy.state_dict().items()}
        run(trainer)
        after = trainer.rollout.policy.state_dict()
        moved[strength] = sum(float((after[n] - p).square().sum()) for n, p in start.items())
    assert moved[100.0] < 0.1 * moved[0.0]


def test_a_run_that_goes_on_with_l2_init_is_drawn_to_where_it_began(tmp_path: Path) -> None:
    first = make_trainer(tmp_path / "run", strategy=["finetune"])
    start = {n: p.clone() for n, p in first.rollout.policy.state_dict().items()}
    run(first, until=96)
    second = make_trainer(tmp_path / "run", strategy=["l2_init"])
    second.load_state_dict(first.state_dict())
    strategy = second.strategies[0]
    assert isinstance(strategy, L2Init)
    for name, anchor in strategy.anchor.items():
        assert torch.equal(anchor, start[name])
