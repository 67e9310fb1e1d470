"""RER: what a new relation does (nothing), what its weights do, and its gradient through one step of the heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lifelong.agent.policy import Outputs, inputs_of
from lifelong.agent.strategies.rer import RER, Relation
from tests.agent.support import filled, perturb, random_chunk

B, T = 6, 4


def batch_of(**options: Any) -> tuple[Any, ...]:
    strategy = RER(capacity=50, start=1, **options)
    policy, ctx = filled(strategy, B, T)
    perturb(policy)
    batch = strategy.transform_batch(ctx, random_chunk(policy, T, B))
    outputs = policy.sequence(batch, batch.state)
    loss, _ = ctx.objective.loss(outputs, batch, {})
    return strategy, policy, ctx, batch, outputs, loss


def opinionated(relation: Relation, seed: int = 3) -> None:
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in relation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter) * 0.5)


def test_a_new_relation_weighs_all_alike_as_er_does() -> None:
    strategy, policy, ctx, batch, outputs, loss = batch_of(relation_lr=0.0)
    extra = strategy.extra_loss(ctx, batch, outputs, B)
    assert float(extra.detach()) == 0.0
    parameters = list(policy.parameters())
    for g in torch.autograd.grad(extra, parameters, allow_unused=True, retain_graph=True):
        assert g is None or float(g.abs().max()) < 1e-7
    assert strategy.report()["weight_live"] == strategy.report()["weight_replayed"] == 1.0
    assert loss.requires_grad


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_loss_is_the_weighted_mean_over_sequences(ratio: float) -> None:
    strategy, _, ctx, batch, outputs, loss = batch_of(relation_lr=0.0, ratio=ratio)
    opinionated(strategy.relation)
    count = round(ratio * B)
    got = loss + strategy.extra_loss(ctx, batch, outputs, B)
    # by hand: pairs go round, a copy in several has the mean of its weights
    error = outputs.error.detach().abs().mean(0)
    size = outputs.policy.detach().norm(dim=-1).mean(0)
    given: list[list[torch.Tensor]] = [[] for _ in range(batch.copies)]
    for n in range(max(B, count)):
        i, j = n % B, B + n % count
        with torch.no_grad():
            w = strategy.relation(torch.stack([error[i], error[j]])[None], torch.stack([size[i], size[j]])[None])[0]
        given[i].append(w[0])
        given[j].append(w[1])
    weight = torch.stack([torch.stack(ws).mean() for ws in given])
    assert float(weight.std()) > 0.05
    each = []
    for copy in range(batch.copies):
        one = batch.select(torch.tensor([copy]))
        bootstrap, final = outputs.after()
        said = Outputs(
            outputs.policy[:, [copy]],
            outputs.value[:, [copy]],
            lambda b=bootstrap[[copy]], f=final[:, [copy]]: (b, f),
        )
        each.append(ctx.objective.loss(said, one, {})[0])
    torch.testing.assert_close(got, (weight * torch.stack(each)).sum() / weight.sum())


def test_the_step_that_is_looked_through_is_one_of_gradient_descent_on_the_weighted_loss() -> None:
    strategy, policy, ctx, batch, outputs, _ = batch_of(step=0.7)
    weight_B = torch.rand(batch.copies, generator=torch.Generator().manual_seed(0)) + 0.1
    got = strategy.moved(ctx, batch, outputs, weight_B)
    weight, bias = (x.detach().requires_grad_() for x in policy.read_out())
    said = policy.outputs(torch.nn.functional.linear(outputs.features.detach(), weight, bias), inputs_of(batch))
    said.after = outputs.after
    loss, _ = ctx.objective.loss(said, replace(batch, weight=batch.weight * weight_B), {})
    for x, moved, g in zip((weight, bias), got, torch.autograd.grad(loss, [weight, bias]), strict=True):
        torch.testing.assert_close(moved, x.detach() - 0.7 * g, atol=1e-6, rtol=1e-5)


def test_the_second_loss_is_differentiated_through_one_step_of_the_heads() -> None:
    """Its gradient against finite differences, in double precision."""
    strategy, policy, ctx, batch, outputs, _ = batch_of(step=1.0)
    policy.double()
    strategy.relation.double()
    opinionated(strategy.relation)
    real = batch.map(lambda name, x, dim: x.double() if x.is_floating_point() else x)
    fresh = real.select(torch.arange(B, 2 * B))
    outputs = policy.sequence(real, real.state)
    ctx.objective.loss(outputs, real, {})
    pairs = strategy._pairs(real, outputs, B)

    def meta() -> torch.Tensor:
        found: torch.Tensor = strategy.meta_loss(ctx, real, outputs, pairs, fresh)
        return found

    parameters = list(strategy.relation.parameters())
    gradients = torch.autograd.grad(meta(), parameters)
    assert max(float(g.abs().max()) for g in gradients) > 1e-6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        for index in range(0, flat.numel(), max(1, flat.numel() // 3)):
            with torch.no_grad():
                flat[index] += 1e-5
                high = float(meta_value(meta))
                flat[index] -= 2e-5
                low = float(meta_value(meta))
                flat[index] += 1e-5
            assert float(gradient.view(-1)[index]) == pytest.approx((high - low) / 2e-5, rel=1e-3, abs=1e-9)


def meta_value(meta: Any) -> torch.Tensor:
    with torch.enable_grad():
        value: torch.Tensor = meta()
    return value.detach()


def test_steps_of_the_relation_lower_the_second_loss() -> None:
    strategy, policy, ctx, batch, outputs, _ = batch_of(step=1.0, relation_lr=0.01)
    pairs = strategy._pairs(batch, outputs, B)
    fixed = replace(outputs)
    fresh = strategy.draw(ctx, 64)
    before = float(meta_value(lambda: strategy.meta_loss(ctx, batch, fixed, pairs, fresh)))
    for _ in range(30):
        strategy._learn(ctx, batch, fixed, pairs)
    after = float(meta_value(lambda: strategy.meta_loss(ctx, batch, fixed, pairs, fresh)))
    assert after < before - 1e-5
    assert policy.training
