"""SI: the path integral against the loss it follows, the importance against the formula, the penalty's own gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Context, Source, Strategy
from lifelong.agent.strategies.si import SI
from tests.agent.support import make_context, make_policy, make_trainer, random_chunk, run


def nowhere(chunks: int) -> Any:
    raise AssertionError("nothing looks back")


def begun(**options: Any) -> tuple[SI, Policy, Context]:
    policy = make_policy("elstm", 5).double()
    si = SI(**options)
    ctx = make_context(policy, ActorCritic(policy.distribution), 2, 2)
    si.setup(ctx, 0)
    return si, policy, ctx


def loss_of(policy: Policy, target: dict[str, Tensor]) -> Tensor:
    terms = [((i % 3 + 1) * (p - target[n]).square()).sum() for i, (n, p) in enumerate(policy.named_parameters())]
    return torch.stack(terms).sum()


def descend(si: SI, policy: Policy, ctx: Context, target: dict[str, Tensor], steps: int, lr: float) -> None:
    """Gradient descent on a quadratic loss and the penalty, with the hooks in the learner's order."""
    chunk = random_chunk(policy, 2, 2, dtype=torch.float64)
    for _ in range(steps):
        loss = loss_of(policy, target)
        extra = si.extra_loss(ctx, chunk, policy.sequence(chunk, chunk.state), 2)
        loss = loss if extra is None else loss + extra
        named = dict(policy.named_parameters())
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        si.transform_gradients(ctx, gradients)
        deltas = {n: -lr * g for n, g in gradients.items()}
        si.transform_update(ctx, deltas)
        with torch.no_grad():
            for n, p in named.items():
                p += deltas[n]
        si.after_update(ctx)


def targets(policy: Policy, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in policy.named_parameters()}


@pytest.mark.parametrize("critic", [True, False])
def test_the_path_integral_over_a_run_is_by_how_much_the_loss_fell(critic: bool) -> None:
    si, policy, ctx = begun(critic=critic)
    target = targets(policy, 1)
    if not critic:
        target |= {n: p.detach().clone() for n, p in policy.named_parameters() if n.startswith("critic.")}
    before = float(loss_of(policy, target))
    descend(si, policy, ctx, target, 300, 1e-3)
    fell = before - float(loss_of(policy, target))
    assert fell > 0.5 * before
    assert si.report()["path_integral"] == pytest.approx(fell, rel=5e-3)
    assert all(bool((w >= 0).all()) for w in si.omega.values())


def test_the_penaltys_own_gradient_is_no_part_of_the_path_integral() -> None:
    """In the second task the loss without the penalty falls by the sum of omega, while the penalty works against it."""
    si, policy, ctx = begun(strength=5.0, critic=True)
    descend(si, policy, ctx, targets(policy, 1), 300, 1e-3)
    si.consolidate(ctx, nowhere)
    target = targets(policy, 2)
    before = float(loss_of(policy, target))
    descend(si, policy, ctx, target, 300, 2e-4)
    fell = before - float(loss_of(policy, target))
    assert float(si.report()["penalty"]) > 0.05 * before  # it really did
    assert si.report()["path_integral"] == pytest.approx(fell, rel=5e-3)


def test_importance_is_the_integral_over_the_squared_way_and_begins_anew_with_every_task() -> None:
    si, policy, ctx = begun(damping=0.1, strength=3.0, decay=0.5)
    start = {n: p.detach().clone() for n, p in si.parameters.items()}
    descend(si, policy, ctx, targets(policy, 1), 20, 1e-2)
    omega = {n: w.clone() for n, w in si.omega.items()}
    si.consolidate(ctx, nowhere)
    first = {n: w.clamp(min=0) / ((si.parameters[n] - start[n]).square() + 0.1) for n, w in omega.items()}
    for n, importance in si.importance.items():
        torch.testing.assert_close(importance, first[n])
        assert torch.equal(si.anchor[n], si.parameters[n]) and bool((si.omega[n] == 0).all())
    shift = 0.1
    with torch.no_grad():
        for p in si.parameters.values():
            p += shift
    chunk = random_chunk(policy, 2, 2, dtype=torch.float64)
    penalty = si.extra_loss(ctx, chunk, policy.sequence(chunk, chunk.state), 2)
    assert penalty is not None
    expected = 0.5 * 3.0 * shift**2 * sum(float(f.sum()) for f in first.values())
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-9)
    si.omega = {n: -torch.ones_like(w) for n, w in si.omega.items()}  # a loss that rose makes nothing important
    si.consolidate(ctx, nowhere)
    for n, importance in si.importance.items():
        torch.testing.assert_close(importance, 0.5 * first[n])


class Halving(Strategy):
    """Lets half of every step through, after everybody else."""

    def __init__(self) -> None:
        self.path = 0.0

    def transform_gradients(self, ctx: Context, gradients: Any) -> None:
        self.gradients = {n: g.clone() for n, g in gradients.items() if not n.startswith("critic.")}
        self.before = {n: p.detach().clone() for n, p in ctx.policy.named_parameters()}

    def transform_update(self, ctx: Context, deltas: Any) -> None:
        for delta in deltas.values():
            delta *= 0.5

    @torch.no_grad()
    def after_update(self, ctx: Context) -> None:
        for n, p in ctx.policy.named_parameters():
            if n in self.gradients:
                self.path -= float((self.gradients[n].double() * (p - self.before[n]).double()).sum())

    def on_task_end(self, ctx: Context, source: Source) -> None:
        self.path = 0.0


def test_in_a_run_the_steps_are_those_that_were_really_made(tmp_path: Path) -> None:
    strategies = [{"kind": "si", "every": 10**6}, {"kind": f"{__name__}:Halving"}]
    trainer = make_trainer(tmp_path, strategy=strategies, optimizer={"kind": "adam", "lr": 1e-3})
    run(trainer, until=128)
    si, halving = trainer.strategies
    assert isinstance(si, SI) and isinstance(halving, Halving)
    assert halving.path != 0.0
    assert si.report()["path_integral"] == pytest.approx(halving.path, rel=1e-4)


def test_without_boundaries_it_works_on_a_clock(tmp_path: Path) -> None:
    spec = {"kind": "si", "every": 64}
    trainer = make_trainer(tmp_path, strategy=[spec], stream={"boundaries": "hidden", "task_id": "hidden"})
    run(trainer, until=96)
    si = trainer.strategies[0]
    assert isinstance(si, SI) and si.last_clock == 64
    assert any(bool((f > 0).any()) for f in si.importance.values())
