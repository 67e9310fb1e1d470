"""Optimisers that evaluate an average: their steps are those of the papers, and training does not notice."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong.agent.errors import ConfigError
from lifelong.agent.moments import moments
from lifelong.agent.optimizers.base import Averaging
from lifelong.agent.optimizers.nt_asgd import NTASGD
from lifelong.agent.optimizers.schedule_free import ScheduleFree
from lifelong.agent.runtime import checkpoint
from lifelong.agent.strategies.initial import reinitialise
from tests.agent.support import Silent, assert_identical, make_trainer, run

KINDS: list[dict[str, Any]] = [
    {"kind": "schedule_free", "lr": 1e-2},
    {"kind": "schedule_free", "base": "sgd", "lr": 0.5, "warmup_steps": 3},
    {"kind": "nt_asgd", "lr": 0.1, "patience": 1},
]


def gradients(count: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, generator=g, dtype=torch.float64) for _ in range(count)]


def average(optimizer: Averaging, parameter: nn.Parameter) -> Tensor:
    with optimizer.evaluation_view():
        return parameter.detach().clone()


@pytest.mark.parametrize("base", ["adamw", "sgd"])
@pytest.mark.parametrize(("warmup", "r", "decay"), [(0, 0.0, 0.0), (4, 1.0, 0.1)])
def test_schedule_free_steps_are_those_of_the_paper(base: Any, warmup: int, r: float, decay: float) -> None:
    """x, y and z written out as in eqs. 3 to 5, where the package keeps y and z only."""
    parameter = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    lr, beta, beta2 = 0.05, 0.9, 0.99
    optimizer = ScheduleFree(
        [parameter], base=base, lr=lr, beta=beta, beta2=beta2, weight_decay=decay, warmup_steps=warmup, r=r
    )
    x, z, square, total = torch.ones(3, 4).double(), torch.ones(3, 4).double(), torch.zeros(3, 4).double(), 0.0
    for k, gradient in enumerate(gradients(12), 1):
        y = (1 - beta) * z + beta * x
        torch.testing.assert_close(parameter.detach(), y, rtol=1e-12, atol=1e-12)
        parameter.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, gradient)
        now = lr * min(1.0, k / warmup) if warmup else lr
        square = beta2 * square + (1 - beta2) * gradient.square()
        scaled = gradient / ((square / (1 - beta2**k)).sqrt() + 1e-8) if base == "adamw" else gradient
        z = z - now * (scaled + decay * y)
        weight = k**r * now**2  # the largest learning rate so far is the present one
        total += weight
        x = (1 - weight / total) * x + weight / total * z
        torch.testing.assert_close(average(optimizer, parameter), x, rtol=1e-10, atol=1e-10)


def test_the_average_of_sgd_is_that_of_torch_once_it_has_begun() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3, 4, dtype=torch.float64)) for _ in range(2))
    optimizer = NTASGD([ours], lr=0.125, weight_decay=0.01, patience=2)
    reference = torch.optim.ASGD([theirs], lr=0.125, lambd=0.0, alpha=0.0, t0=-1.0, weight_decay=0.01)
    optimizer.param_groups[0]["averaging"] = True
    for gradient in gradients(9):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    kept = reference.state[theirs]["ax"]  # whose weights torch has in float32
    torch.testing.assert_close(average(optimizer, ours), kept, rtol=1e-6, atol=1e-6)


def test_averaging_begins_when_an_evaluation_is_worse_than_the_best_before_the_last_ones() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = NTASGD([parameter], lr=1.0, patience=2)
    begun = []
    for value in (0.1, 0.5, 0.3, 0.45, 0.6, 0.4):
        optimizer.look(0, value)
        begun.append(optimizer.param_groups[0]["averaging"])
    # 0.3 against nothing but 0.1; 0.45 and 0.6 against at most 0.5, of which 0.45 is worse
    assert begun == [False, False, False, False, False, True] or begun == [False, False, False, True, True, True]
    seen, expected = [0.1, 0.5, 0.3, 0.45, 0.6, 0.4], []
    for i, value in enumerate(seen):  # what the authors' training script asks
        nonmono = i > 2 and value < max(seen[: i - 2])
        expected.append(nonmono or bool(expected and expected[-1]))
    assert begun == expected
    optimizer.look(1, 0.9)  # another task
    assert not optimizer.param_groups[0]["averaging"] and optimizer.param_groups[0]["seen"] == [0.9]


@pytest.mark.parametrize("spec", KINDS, ids=str)
def test_a_run_resumes_bit_for_bit_and_evaluation_does_not_disturb_it(spec: dict[str, Any], tmp_path: Path) -> None:
    whole, first, second = (make_trainer(tmp_path / n, optimizer=spec) for n in ("whole", "cut", "cut"))
    for trainer in (whole, first, second):
        if spec["kind"] == "nt_asgd":
            trainer.learner.optimizer.param_groups[0]["averaging"] = True
    run(whole)
    run(first, until=96)
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    second.load_state_dict(saved)
    second.evaluations = first.evaluations
    before = [p.detach().clone() for p in second.rollout.policy.parameters()]
    groups = [{**group, "params": None} for group in second.learner.optimizer.param_groups]
    second.evaluator.evaluate(second.context(), [])
    for group, kept in zip(second.learner.optimizer.param_groups, groups, strict=True):  # what an evaluation says
        group.update({name: kept[name] for name in ("seen", "averaging", "averaged", "segment") if name in kept})
    assert all(torch.equal(a, b) for a, b in zip(before, second.rollout.policy.parameters(), strict=True))
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize("spec", KINDS, ids=str)
def test_what_is_evaluated_is_the_average(spec: dict[str, Any], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, optimizer=spec)
    optimizer: Any = trainer.learner.optimizer
    if spec["kind"] == "nt_asgd":
        optimizer.param_groups[0]["averaging"] = True
    run(trainer, until=96)
    parameters = list(trainer.rollout.policy.parameters())
    at = [p.detach().clone() for p in parameters]
    seen: list[list[Tensor]] = []
    episodes = trainer.evaluator._episodes

    def watched(task: int) -> Any:
        seen.append([p.detach().clone() for p in parameters])
        return episodes(task)

    trainer.evaluator._episodes = watched  # type: ignore[method-assign]
    trainer.evaluate(Silent(), None)
    averages = {id(p): average for p, average in optimizer.averages()}
    assert len(averages) == len(parameters)
    assert all(torch.equal(x, averages[id(p)]) for x, p in zip(seen[0], parameters, strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(seen[0], at, strict=True))


def test_entries_that_begin_anew_have_no_other_past_place(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, optimizer=KINDS[0])
    run(trainer, until=96)
    name, parameter = "critic.weight", trainer.rollout.policy.critic.weight
    mask = torch.zeros_like(parameter, dtype=torch.bool)
    mask[:, :2] = True
    kept = {kind: x.clone() for kind, x in moments(trainer.learner.optimizer, parameter).items()}
    reinitialise(trainer.context(), {name: torch.full_like(parameter, 7.0)}, {name: mask})
    state = moments(trainer.learner.optimizer, parameter)
    assert set(state) == {"z", "exp_avg_sq"}
    assert bool((state["z"][mask] == 7.0).all()) and bool((state["exp_avg_sq"][mask] == 0.0).all())
    assert all(torch.equal(state[kind][~mask], x[~mask]) for kind, x in kept.items())
    optimizer: Any = trainer.learner.optimizer
    with optimizer.evaluation_view():
        torch.testing.assert_close(parameter[mask], torch.full((2,), 7.0))


@pytest.mark.parametrize("strategy", ["gpm", "weight_clipping", "packnet", "hare_tortoise"])
def test_strategies_that_move_parameters_beside_it_are_refused(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"strategy {strategy} moves or replaces parameters beside them"):
        stream = {"task_id": "observed"}
        make_trainer(tmp_path, optimizer=KINDS[0], strategy=[strategy], stream=stream)


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ConfigError, match=r"needs schedulefree, .*pip install 'lifelong\[schedule_free\]'"):
        make_trainer(tmp_path, optimizer="schedule_free")


def test_a_head_without_a_gradient_stays_where_it_is(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        optimizer={"kind": "schedule_free", "lr": 1e-2, "weight_decay": 0.1},
        stream={"task_id": "observed"},
        policy={"heads": "per_task"},
    )
    run(trainer, until=96)  # the first task alone has been trained
    actor = trainer.rollout.policy.actor.linear.weight
    other = actor.unflatten(0, (trainer.rollout.policy.actor.tasks, -1))[-1].detach().clone()
    optimizer: Any = trainer.learner.optimizer
    with optimizer.evaluation_view():
        there = actor.unflatten(0, (trainer.rollout.policy.actor.tasks, -1))[-1]
        torch.testing.assert_close(there, other, rtol=1e-6, atol=1e-7)
    assert math.isfinite(float(other.sum()))
