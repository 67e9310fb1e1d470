"""Hooks that are compiled calls: a planned run with them is the run chunk by chunk, and no hook is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.config import merge
from lifelong.agent.errors import LifelongError
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.ewc import EWC
from lifelong.agent.strategies.planned import compiled
from lifelong.agent.strategies.si import SI
from lifelong.agent.strategies.trac import Trac
from tests.agent.runtime.planned.test_plan import assert_close
from tests.agent.support import make_trainer, one_by_one, run

TASKS = [{"name": name, "env": {"kind": "CartPole", "max_episode_steps": 11}} for name in "ab"]
STRATEGIES: dict[str, list[Any]] = {
    "ewc": [{"kind": "ewc", "strength": 3.0, "sequences": 16}],
    "mas and l2": [{"kind": "mas", "strength": 2.0, "sequences": 16}, {"kind": "l2", "strength": 0.3}],
    "si": [{"kind": "si", "strength": 3.0}],
    "si among others": [
        {"kind": "si"},
        {"kind": "l2_init", "strength": 0.1},
        {"kind": "weight_clipping", "kappa": 1.0},
    ],
    "trac": ["trac"],
    "trac and si": ["trac", "si"],
    "explore": [{"kind": "explore", "weight": 0.3, "steps": 320}],
    "explore on a clock": [{"kind": "explore", "every": 128, "steps": 64}, {"kind": "l2_init", "strength": 0.1}],
}
OBJECTIVES: dict[str, Any] = {"actor_critic": {}, "ppo": {"objective": {"kind": "ppo", "epochs": 2, "minibatches": 2}}}


def trainer(folder: Path, strategy: list[Any], **changes: Any) -> Trainer:
    common = {
        "stream": {"tasks": TASKS, "steps_per_task": 320, "boundaries": "given"},
        "optimizer": {"kind": "adam", "lr": 0.01},
        "policy": {"encoder": {"kind": "mlp", "hidden": [12]}},
        "log_every": 100_000,
    }
    made = make_trainer(folder, **merge(common, {"strategy": strategy, **changes}))
    for each in made.strategies:
        if isinstance(each, Trac):
            each.unit *= 1e5  # in so few chunks its steps would be less than what a float can hold
    return made


def assert_alike(planned: Trainer, eager: Trainer) -> None:
    assert planned.step == eager.step
    for got, wanted in ((planned.shared_state(), eager.shared_state()), (planned.own_state(), eager.own_state())):
        assert_close(got, wanted, 2e-3)
    got, wanted = ([each.report() for each in one.strategies] for one in (planned, eager))
    for mine, other in zip(got, wanted, strict=True):
        assert mine == pytest.approx(other, rel=2e-3, abs=1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_planned_hooks_are_those_chunk_by_chunk(name: str, objective: str, tmp_path: Path) -> None:
    planned, eager = (trainer(tmp_path / each, STRATEGIES[name], **OBJECTIVES[objective]) for each in "ab")
    assert planned.planned.plan is not None, planned.planned.why
    one_by_one(eager)
    while planned.step < 320 + 3 * 32:  # over a border
        planned.advance()
        while eager.step < planned.step:
            eager.advance()
    assert planned.planned.plan.kept, "no chunk was planned"
    assert_alike(planned, eager)


def test_a_hook_that_is_left_out_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = SI.calls
    for left_out in ("extra_loss", "transform_gradients", "transform_update"):
        monkeypatch.setattr(
            SI, "calls", lambda self, to, out=left_out: {k: c for k, c in calls(self, to).items() if k != out}
        )
        with pytest.raises((AssertionError, LifelongError)):
            test_planned_hooks_are_those_chunk_by_chunk("si", "actor_critic", tmp_path / left_out)


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    strategy = ["trac", "si", {"kind": "explore", "steps": 200}]
    whole, first, second = (trainer(tmp_path / name, strategy, checkpoint={"every": 64}) for name in "abc")
    run(whole)
    run(first, until=448)
    assert 448 <= first.step < whole.step
    second.load_state_dict(first.state_dict())
    run(second)
    assert whole.planned.plan is not None
    torch.testing.assert_close(dict(second.learner.named), dict(whole.learner.named), rtol=0, atol=0)


def test_nothing_follows_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    made = trainer(tmp_path, ["trac", "si", "weight_clipping"])
    for _ in range(3):
        made.advance()
    kept = {name: value.clone() for name, value in made.learner.named.items()}
    omega = {name: value.clone() for name, value in made.strategies[1].omega.items()}  # type: ignore[attr-defined]
    with torch.no_grad():
        made.learner.named["critic.bias"].fill_(float("nan"))
    with pytest.raises(Exception, match="not finite"):
        made.advance()
    del kept["critic.bias"]
    for name, value in kept.items():
        assert torch.equal(made.learner.named[name], value)
    for name, value in omega.items():
        assert torch.equal(made.strategies[1].omega[name], value)  # type: ignore[attr-defined]


class Measured(EWC):
    """Another importance, which no chunk sees."""

    def consolidate(self, ctx: Context, source: Any) -> None:
        self.hold_all_alike()


class Pulling(EWC):
    """A hook of its own."""

    def transform_gradients(self, ctx: Context, gradients: Any) -> None:
        for gradient in gradients.values():
            gradient.mul_(0.5)


class Both(Pulling):
    """A hook of its own and calls for it."""

    def calls(self, update: Any) -> Any:
        return {}


class Plain(Strategy):
    """No hooks."""

    def on_task_start(self, ctx: Context) -> Tensor | None:
        return None


@pytest.mark.parametrize(("kind", "wanted"), [(Measured, True), (Pulling, False), (Both, True), (Plain, True)])
def test_a_subclass_with_a_hook_of_its_own_is_not_taken_for_its_base(kind: type, wanted: bool) -> None:
    assert compiled(kind(), Strategy) == wanted
