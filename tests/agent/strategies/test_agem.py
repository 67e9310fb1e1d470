"""A-GEM: which gradient is left, and when."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.policy import Policy
from lifelong.agent.strategies.agem import AGEM
from lifelong.agent.strategies.base import Context
from tests.agent.support import filled, perturb, random_chunk

B, T = 6, 4


def ready() -> tuple[AGEM, Policy, Context]:
    strategy = AGEM(capacity=50, start=1)
    policy, ctx = filled(strategy, B, T)
    perturb(policy)
    return strategy, policy, ctx


def reference_of(strategy: AGEM, policy: Policy, ctx: Context) -> Tensor:
    """The gradient, flat, on the sequences that are drawn next; they will be drawn again."""
    before = strategy.replay.generator.get_state()
    drawn, _ = strategy.replay.sample(B, ctx.step)
    strategy.replay.generator.set_state(before)
    loss, _ = ctx.objective.loss(policy.sequence(drawn, drawn.state), drawn, {})
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


def projected(strategy: AGEM, policy: Policy, ctx: Context, flat: Tensor) -> Tensor:
    """What the strategy makes of a gradient."""
    shapes = {name: p.shape for name, p in policy.named_parameters()}
    parts = flat.clone().split([shape.numel() for shape in shapes.values()])
    gradients = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
    strategy.transform_gradients(ctx, gradients)
    return torch.cat([g.flatten() for g in gradients.values()])


def test_a_gradient_against_the_replayed_one_is_projected_as_by_hand_and_no_other_changes() -> None:
    strategy, policy, ctx = ready()
    seen = set()
    for seed in range(20):
        reference = reference_of(strategy, policy, ctx)
        g = torch.randn(len(reference), generator=torch.Generator().manual_seed(seed))
        inner = torch.dot(g, reference)
        got = projected(strategy, policy, ctx, g)
        against = bool(inner < 0)
        hand = g - inner / torch.dot(reference, reference) * reference if against else g
        torch.testing.assert_close(got, hand)
        assert against or torch.equal(got, g)
        after = torch.dot(got.double(), reference.double())
        assert float(after) >= -1e-6 * float(got.norm() * reference.norm())
        assert strategy.report()["projected"] == against
        torch.testing.assert_close(
            strategy.report()["cosine"], float(inner / g.norm() / reference.norm()), rtol=1e-4, atol=1e-6
        )
        seen.add(against)
    assert seen == {True, False}


def test_the_opposite_of_the_replayed_gradient_leaves_nothing() -> None:
    strategy, policy, ctx = ready()
    reference = reference_of(strategy, policy, ctx)
    got = projected(strategy, policy, ctx, -3 * reference)
    assert float(got.norm()) < 1e-6 * float(reference.norm())


def test_nothing_is_mixed_into_the_batch_and_nothing_is_projected_before_the_buffer_has_started() -> None:
    strategy, policy, ctx = ready()
    live = random_chunk(policy, T, B)
    assert strategy.transform_batch(ctx, live) is live
    early = AGEM(capacity=50, start=50)
    filled(early, B, T)
    g = torch.randn(sum(p.numel() for p in policy.parameters()))
    assert torch.equal(projected(early, policy, ctx, g), g) and "cosine" not in early.report()
