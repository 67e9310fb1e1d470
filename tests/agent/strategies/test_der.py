"""Dark experience replay: what is matched, what the objective sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.strategies.der import DER
from lifelong.agent.strategies.der_pp import DERPlusPlus
from lifelong.agent.strategies.er import ER
from tests.agent.support import filled, make_trainer, perturb, random_chunk, run

B, T = 6, 4


def batch_of(strategy: DER, ratio_seed: int = 0) -> tuple[Any, ...]:
    policy, ctx = filled(strategy, B, T)
    perturb(policy)
    live = random_chunk(policy, T, B, seed=ratio_seed)
    batch = strategy.transform_batch(ctx, live)
    return policy, ctx, live, batch, policy.sequence(batch, batch.state)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_der_adds_the_squared_distance_to_what_was_recorded_and_learns_nothing_else_from_it(ratio: float) -> None:
    strategy = DER(capacity=50, start=1, ratio=ratio, matching=0.3, value_matching=0.2)
    policy, ctx, live, batch, outputs = batch_of(strategy)
    assert batch.copies == B + round(ratio * B)
    expected, _ = ctx.objective.loss(policy.sequence(live, live.state), live, {})
    torch.testing.assert_close(ctx.objective.loss(outputs, batch, {})[0], expected)
    got = strategy.extra_loss(ctx, batch, outputs, B)
    z, v = outputs.policy[:, B:], outputs.value[:, B:]
    steps = z.shape[0] * z.shape[1]
    hand = 0.3 * (z - batch.policy[:, B:]).pow(2).sum() / steps + 0.2 * (v - batch.value[:, B:]).pow(2).sum() / steps
    torch.testing.assert_close(got, hand)
    assert float(hand.detach()) > 1e-3


def test_matching_is_zero_for_the_policy_that_acted() -> None:
    strategy = DER(capacity=50, start=1)
    policy, ctx = filled(strategy, B, T)
    batch = strategy.transform_batch(ctx, random_chunk(policy, T, B))
    loss = strategy.extra_loss(ctx, batch, policy.sequence(batch, batch.state), B)
    assert loss is not None and float(loss.detach()) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("burn_in", [0, 1])
@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_der_pp_adds_the_objective_of_a_second_independent_draw(ratio: float, burn_in: int) -> None:
    beta = 0.5
    strategy = DERPlusPlus(capacity=50, start=1, ratio=ratio, burn_in=burn_in, replay_weight=beta)
    policy, ctx, live, batch, outputs = batch_of(strategy)
    n = round(ratio * B)
    assert batch.copies == B + 2 * n
    first, second = (batch.select(torch.arange(B + i * n, B + (i + 1) * n)) for i in (0, 1))
    assert not first.weight.any() and not torch.equal(first.obs, second.obs)

    def objective(chunk: Any) -> torch.Tensor:
        return ctx.objective.loss(policy.sequence(chunk, chunk.state), chunk, {})[0]

    hand = (objective(live) + beta * objective(second)) / (1 + beta)
    torch.testing.assert_close(ctx.objective.loss(outputs, batch, {})[0], hand)
    plain = DER(capacity=50, start=1, ratio=ratio, burn_in=burn_in)
    plain.matched = strategy.matched
    a, b = strategy.extra_loss(ctx, batch, outputs, B), plain.extra_loss(ctx, batch, outputs, B)
    assert a is not None and b is not None
    torch.testing.assert_close(a, b / (1 + beta))


@pytest.mark.parametrize("first", [True, False])
def test_beside_er_each_has_its_own_sequences(first: bool) -> None:
    der, er = DER(capacity=50, start=1), ER(capacity=50, start=1)
    policy, ctx = filled(der, B, T)
    er.setup(ctx, 1)
    er.replay.load_state_dict(der.replay.state_dict(), ctx.device)
    perturb(policy)
    batch = random_chunk(policy, T, B)
    for strategy in (der, er) if first else (er, der):
        batch = strategy.transform_batch(ctx, batch)
    muted = ~batch.weight.any(0)
    assert int(muted.sum()) == (B if first else 2 * B) and bool(muted[B : 2 * B].all()) == first
    outputs = policy.sequence(batch, batch.state)
    got = der.extra_loss(ctx, batch, outputs, B)
    z, v = outputs.policy - batch.policy, outputs.value - batch.value
    torch.testing.assert_close(got, 0.1 * (z[:, muted].pow(2).sum(-1) + v[:, muted].pow(2)).mean())


@pytest.mark.parametrize("kind", ["der", "der_pp"])
def test_on_prediction_tasks_the_steps_that_have_a_target_are_matched(kind: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        stream={"tasks": [{"name": "rows", "env": {"kind": "ImageRows", "rows_per_step": 7}}]},
        objective={"kind": "supervised"},
        strategy=[{"kind": kind, "capacity": 24, "start": 8}],
    )
    run(trainer, until=96)
    (strategy,) = trainer.strategies
    assert isinstance(strategy, DER)
    ctx, policy = trainer.context(), trainer.rollout.policy
    batch = strategy.transform_batch(ctx, trainer.rollout.collect(T).chunk)
    assert strategy.matched is not None
    drawn = strategy.matched[0]
    outputs = policy.sequence(batch, batch.state)
    got = strategy.extra_loss(ctx, batch, outputs, 8)
    z = (outputs.policy[:, 8:16] - drawn.policy).square().sum(-1) + (outputs.value[:, 8:16] - drawn.value).square()
    assert 0 < int(drawn.target_mask.sum()) < drawn.target_mask.numel()
    torch.testing.assert_close(got, 0.1 * z[drawn.target_mask].mean() / (1 + strategy.replay_weight))
