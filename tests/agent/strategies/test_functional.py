"""Functional regularisation: what is stored, the distance against its definition, and that it holds outputs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.functional import Functional
from tests.agent.support import MAZES, make_trainer, run

TASKS = [*MAZES, {"name": "longer", "env": {"kind": "TMaze", "corridor": 4}}]


def trained(folder: Path, until: int | None = 224, **options: Any) -> tuple[Trainer, Functional]:
    spec = {"kind": "functional", "sequences": 16, **options}
    trainer = make_trainer(folder, strategy=[spec], stream={"tasks": TASKS})
    run(trainer, until=until)
    strategy = trainer.strategies[0]
    assert isinstance(strategy, Functional)
    return trainer, strategy


def distance(trainer: Trainer, strategy: Functional) -> Tensor:
    experience = trainer.rollout.collect(4)
    chunk, policy = experience.chunk, trainer.rollout.policy
    loss = strategy.extra_loss(trainer.context(), chunk, policy.sequence(chunk, chunk.state), chunk.copies)
    assert loss is not None
    return loss


def test_where_a_task_ends_the_distance_is_zero_and_then_it_is_its_definition(tmp_path: Path) -> None:
    trainer, strategy = trained(tmp_path, until=96, strength=3.0, value_weight=0.7)
    assert strategy.report() == {"stored": 0.0}
    strategy.on_task_end(trainer.context(), trainer.source)
    assert strategy.report()["stored"] == 16.0
    assert float(distance(trainer, strategy).detach()) == pytest.approx(0.0, abs=1e-5)
    policy = trainer.rollout.policy
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    generator = strategy.replay.generator.get_state()
    got = distance(trainer, strategy)
    strategy.replay.generator.set_state(generator)
    drawn, _ = strategy.replay.sample(strategy.batch, trainer.step)
    now = policy.sequence(drawn, drawn.state)
    old, new = torch.log_softmax(drawn.policy, -1), torch.log_softmax(now.policy, -1)
    each = (old.exp() * (old - new)).sum(-1) + 0.7 * (now.value - drawn.value) ** 2
    expected = 3.0 * (each * drawn.weight).sum() / drawn.weight.sum()
    torch.testing.assert_close(got, expected)
    got.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.parameters())


def test_tasks_share_a_bounded_store_alike_and_the_stored_sequences_are_those_of_tasks_that_ended(
    tmp_path: Path,
) -> None:
    trainer, strategy = trained(tmp_path / "first", capacity=24)
    held = strategy.replay.task[: strategy.replay.size].tolist()
    assert Counter(held) == {0: 16}
    trainer, strategy = trained(tmp_path / "second", until=None, capacity=24)
    assert Counter(strategy.replay.task[: strategy.replay.size].tolist()) == {0: 12, 1: 12}
    drawn, _ = strategy.replay.sample(4000, trainer.step)
    assert float((drawn.task[0] == 0).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_on_a_clock_it_needs_no_boundaries(tmp_path: Path) -> None:
    spec = {"kind": "functional", "sequences": 8, "every": 64, "capacity": 12}
    hidden = {"boundaries": "hidden", "task_id": "hidden"}
    trainer = make_trainer(tmp_path, strategy=[spec], stream=hidden)
    run(trainer, until=160)
    strategy = trainer.strategies[0]
    assert isinstance(strategy, Functional) and strategy.replay.size == 12 and strategy.last_clock == 128


def test_it_holds_the_outputs_of_the_first_task_while_others_are_learned(tmp_path: Path) -> None:
    moved = {}
    for strength in (0.0, 100.0):
        spec = {"kind": "functional", "sequences": 16, "strength": strength}
        longer = {"optimizer": {"kind": "adam", "lr": 0.01}, "stream": {"steps_per_task": 960}}
        trainer = make_trainer(tmp_path / str(strength), strategy=[spec], **longer)
        run(trainer)
        strategy = trainer.strategies[0]
        assert isinstance(strategy, Functional)
        moved[strength] = strategy.report()["kl"]
    assert moved[100.0] < 0.1 * moved[0.0]
