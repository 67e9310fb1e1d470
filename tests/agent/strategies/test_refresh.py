"""Refresh: the move is what the formula says, the step's gradient is taken there, and others see both as one step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.refresh import Refresh
from tests.agent.support import make_trainer

SPY = "tests.agent.strategies.test_refresh:Spy"
TASKS = [{"name": f"t{i}", "env": {"kind": "TMaze", "corridor": 9, "reversed": i}} for i in (0, 1)]  # 10 steps


class Spy(Strategy):
    """Keeps the gradients and the realised steps that it sees."""

    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        self.gradients = {name: g.clone() for name, g in gradients.items()}

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        self.deltas = {name: d.clone() for name, d in deltas.items()}


def make(folder: Path, lr: float = 0.0, **options: Any) -> tuple[Trainer, Refresh, Spy]:
    changes = {"optimizer": {"kind": "sgd", "lr": lr}, "max_grad_norm": 0, "stream": {"tasks": TASKS}}
    strategies = [{"kind": "refresh", "rate": 0.05, **options}, SPY]
    trainer = make_trainer(folder, strategy=strategies, **changes)
    refresh, spy = trainer.strategies
    assert isinstance(refresh, Refresh) and isinstance(spy, Spy)
    return trainer, refresh, spy


def test_the_move_has_its_size_in_every_tensor_and_is_part_of_the_realised_step(tmp_path: Path) -> None:
    trainer, _, spy = make(tmp_path, noise=0.0, importance=0.0)
    before = {n: p.detach().clone() for n, p in trainer.rollout.policy.named_parameters()}
    trainer.advance()
    assert any(float(p.norm()) == 0 for p in before.values())  # biases at zero stay
    for name, parameter in trainer.rollout.policy.named_parameters():
        moved = parameter.detach() - before[name]
        assert float(moved.norm()) == pytest.approx(0.05 * float(before[name].norm()), rel=1e-3)
        torch.testing.assert_close(spy.deltas[name], moved, atol=1e-6, rtol=0)


def losses(trainer: Trainer, chunk: Any, *, attach: bool) -> Tensor:
    objective, policy = trainer.learner.objective, trainer.rollout.policy
    with torch.no_grad():
        prepared = objective.prepare(chunk)
    state = trainer.learner.engine.attach(chunk.state) if attach else chunk.state
    return objective.loss(policy.sequence(chunk, state), chunk, prepared)[0]


def test_it_goes_up_the_loss_and_the_gradient_of_the_step_is_that_after_the_move_with_the_whole_carry(
    tmp_path: Path,
) -> None:
    trainer, refresh, spy = make(tmp_path, lr=0.05)
    for _ in range(4):
        trainer.advance()
    trainer.follow_stream()
    experience, ctx = trainer.rollout.collect(4), trainer.context()
    assert not bool(experience.chunk.is_init[0].all())  # there is a history
    carry = {name: x.clone() for name, x in trainer.learner.engine.state_dict().items()}
    named = dict(trainer.rollout.policy.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    trainer.learner.update(ctx, experience)
    trainer.learner.engine.load_state_dict(carry)

    def put(share: float) -> None:
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(before[name] + share * refresh.move.get(name, torch.zeros(())))

    def gradients(*, attach: bool) -> dict[str, Tensor]:
        found = torch.autograd.grad(losses(trainer, experience.chunk, attach=attach), list(named.values()))
        return dict(zip(named, found, strict=True))

    put(0.0)
    uphill = sum(float((refresh.move[n] * g).sum()) for n, g in gradients(attach=False).items())
    assert refresh.rise is not None and float(refresh.rise) == pytest.approx(uphill, rel=1e-3) and uphill > 0
    put(1.0)
    exact, truncated = gradients(attach=True), gradients(attach=False)
    for name, gradient in exact.items():
        torch.testing.assert_close(spy.gradients[name], gradient, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(spy.gradients["cell.weight_input"], truncated["cell.weight_input"], rtol=1e-2, atol=1e-5)
    put(0.0)
    here = gradients(attach=True)["cell.weight_input"]
    assert not torch.allclose(spy.gradients["cell.weight_input"], here, rtol=1e-2, atol=1e-5)


def test_what_matters_is_moved_less_and_the_noise_has_its_size(tmp_path: Path) -> None:
    _, refresh, _ = make(tmp_path, importance=3.0, noise=0.0)
    weight = refresh.parameters["cell.weight_input"].detach()
    refresh.before = {"cell.weight_input": weight.clone()}
    refresh.fisher["cell.weight_input"][0] = 1.0
    move = refresh._moved("cell.weight_input", torch.ones_like(weight))
    rows = len(weight)
    torch.testing.assert_close(move[0] * (1 + 3.0 * rows), move[1])
    still = refresh._moved("cell.weight_input", torch.zeros_like(weight))
    assert not still.any()
    refresh.noise, refresh.importance = 0.5, 0.0
    noisy = [float(refresh._moved("cell.weight_input", torch.zeros_like(weight)).norm()) for _ in range(200)]
    assert sum(noisy) / 200 == pytest.approx(0.05 * 0.5 * float(weight.norm()), rel=0.05)
