"""TRAC against the numbers of its authors' package, and against what its formulas say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor, nn

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.strategies.trac import Trac, erfi
from tests.agent.support import make_context, make_policy, make_trainer, one_by_one, run


def test_erfi_is_that_of_mpmath() -> None:
    x = torch.tensor([0.0, 1e-12, -0.3, 1.0, 2.5, -4.0, 6.0, 9.0], dtype=torch.float64)
    expected = torch.tensor([float(mpmath.erfi(float(v))) for v in x], dtype=torch.float64)
    torch.testing.assert_close(erfi(x), expected, rtol=1e-12, atol=0)


class Four(nn.Module):
    """Four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))


def learn(trac: Trac, optimizer: torch.optim.Optimizer, module: Four) -> dict[int, tuple[float, list[float]]]:
    """600 steps on 1/2 sum a (w - c)^2, whose c jumps after 300: S and w after some of them."""
    ctx = make_context(module, None, 1, 1, optimizer=optimizer)  # type: ignore[arg-type]
    trac.setup(ctx, 0)
    trac.unit *= 1e5  # s_prev 1e-3
    a, seen = torch.tensor([1.0, 0.5, 2.0, 0.1]), {}
    for step in range(600):
        c = torch.tensor([1.0, -2.0, 0.5, 3.0]) if step < 300 else torch.tensor([-1.0, 0.5, 1.5, -1.0])
        optimizer.zero_grad()
        (0.5 * a * (module.w - c) ** 2).sum().backward()
        before, gradients = module.w.detach().clone(), {"w": module.w.grad}
        trac.transform_gradients(ctx, gradients)  # type: ignore[arg-type]
        optimizer.step()
        with torch.no_grad():
            deltas = {"w": module.w - before}
            trac.transform_update(ctx, deltas)
            module.w.copy_(before + deltas["w"])
        seen[step + 1] = float(trac.scale), module.w.tolist()
    return seen


#: of `trac-optimizer` 0.0.2 on the same problem, with s_prev 1e-3 (its eps of 1e-8 beside a sum of 1e-7 shortens the
#: way at every step) and mpmath's erfi (its own is wrong by up to 1 %), on 29 November 2026: step -> S, w
OF_THE_PACKAGE: dict[str, dict[int, tuple[float, list[float]]]] = {
    "SGD": {
        1: (0.01005823, [0.000101, -0.000101, 0.000101, 3e-05]),
        10: (0.07561002, [0.00755, -0.007556, 0.00754, 0.002268]),
        100: (8.640455, [1.044886, -2.150544, 0.510517, 1.833212]),
        300: (10.58166, [1.013872, -2.030949, 0.506992, 3.002776]),
        310: (5.298745, [-0.103734, -0.711605, 1.216876, 1.3933]),
        600: (3.442072, [-0.974158, 0.481984, 1.458108, -0.324927]),
    },
    "Adam": {
        1: (0.01005823, [0.000101, -0.000101, 0.000101, 0.000101]),
        10: (0.0755485, [0.007554, -0.007554, 0.007553, 0.007555]),
        100: (5.005099, [1.079716, -2.222003, 0.559177, 3.107921]),
        300: (4.562083, [1.049533, -2.095597, 0.525151, 3.137355]),
        310: (0.8290673, [0.062175, -0.328027, 0.279664, 0.51447]),
        600: (1.48349, [-0.964002, 0.481657, 1.446138, -0.955054]),
    },
}


@pytest.mark.parametrize("kind", OF_THE_PACKAGE)
def test_it_goes_the_way_of_the_authors_package(kind: str) -> None:
    module = Four()
    optimizer: torch.optim.Optimizer = getattr(torch.optim, kind)(module.parameters(), lr=0.01)
    seen = learn(Trac(), optimizer, module)
    for step, (scale, w) in OF_THE_PACKAGE[kind].items():
        assert seen[step][0] == pytest.approx(scale, rel=1e-3), step
        assert seen[step][1] == pytest.approx(w, rel=1e-3, abs=1e-5), step


def test_a_tuner_says_what_its_formula_says() -> None:
    trac = Trac()
    trac.setup(make_context(make_policy(), None, 1, 1), 0)  # type: ignore[arg-type]
    history = [0.3, -0.2, -0.5, 0.1]
    for h in history:
        got = float(trac.tune(torch.tensor(h, dtype=torch.float64)))
    expected = mpmath.mpf(0)
    for beta in (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999):
        variance = sum(beta ** (2 * k) * h * h for k, h in enumerate(reversed(history)))
        sigma = 1e-8 * beta ** len(history) - sum(beta**k * h for k, h in enumerate(reversed(history)))
        expected += 1e-8 / mpmath.erfi(1 / mpmath.sqrt(2)) * mpmath.erfi(sigma / (math.sqrt(2 * variance) + 1e-8))
    assert got == pytest.approx(float(expected), rel=1e-9)


def make(folder: Path, **changes: Any) -> tuple[Learner, Trac, dict[str, Tensor], Any]:
    trainer = make_trainer(folder, strategy=[{"kind": "trac"}], **changes)
    start = {name: p.detach().clone() for name, p in trainer.rollout.policy.named_parameters()}
    run(trainer)
    trac = trainer.strategies[0]
    assert isinstance(trac, Trac)
    return trainer.learner, trac, start, trainer


@pytest.mark.parametrize("objective", ["actor_critic", "ppo"])
def test_the_parameters_are_the_start_plus_the_scaled_way_of_the_optimiser(objective: str, tmp_path: Path) -> None:
    learner, trac, start, _ = make(tmp_path, objective={"kind": objective}, optimizer={"kind": "adam", "lr": 0.02})
    for name, parameter in learner.named.items():
        expected = start[name] + trac.scale.float() * trac.path[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-5)
    assert 0 < float(trac.scale) < 1e3 and all(bool(d.any()) for d in trac.path.values())


def test_what_is_reinitialised_begins_a_new_way(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=[{"kind": "reset_on_task", "what": "head"}, {"kind": "trac"}])
    run(trainer, until=192)
    trac = trainer.strategies[1]
    assert isinstance(trac, Trac) and bool(trac.path["actor.linear.weight"].any())
    trainer.follow_stream()
    assert not bool(trac.path["actor.linear.weight"].any()) and bool(trac.path["cell.weight_input"].any())


@pytest.mark.parametrize("kind", ["trac", "upgd"])
def test_a_head_that_is_not_in_training_does_not_move(kind: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=[{"kind": kind}], policy={"heads": "per_task"})
    run(trainer, until=192)
    before = trainer.rollout.policy.actor.linear.weight.detach().clone().unflatten(0, (2, -1))
    run(trainer)
    after = trainer.rollout.policy.actor.linear.weight.detach().unflatten(0, (2, -1))
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])


def test_its_scale_is_reported(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=[{"kind": "trac"}])
    trac = trainer.strategies[0]
    assert isinstance(trac, Trac)
    trac.setup(make_context(trainer.rollout.policy, ActorCritic(trainer.rollout.policy.distribution), 1, 1), 0)
    assert trac.report() == {"scale": 0.0}


@pytest.mark.parametrize("planned", [False, True])
def test_it_asks_the_gradient_as_it_is_not_as_it_was_clipped(planned: bool, tmp_path: Path) -> None:
    """Clipped ones are as long where the loss explodes as elsewhere, so that S would grow there."""
    seen = []
    for norm in (0.0, 0.01):
        made = make_trainer(tmp_path / str(norm), strategy=["trac"], max_grad_norm=norm)
        if not planned:
            one_by_one(made)
        for _ in range(3):  # S is so small that all are under the same parameters
            made.advance()
        assert (made.planned.plan is not None) == planned
        trac = made.strategies[0]
        assert isinstance(trac, Trac)
        seen.append(float(trac.variance[-1]))
    assert seen[0] > 0 and seen[1] == pytest.approx(seen[0], rel=0.05)
