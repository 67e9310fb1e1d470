"""A run under a curriculum: what an evaluation says decides which task comes next, and a resumed run knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lifelong.agent.config import check
from lifelong.agent.errors import ConfigError
from lifelong.agent.runtime import checkpoint, session
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.trainer import Trainer
from tests.agent.support import assert_identical, run


def config(**changes: Any) -> Any:
    tasks = [{"name": f"n{n}", "env": {"kind": "Parity", "longest": 4, "n": n}} for n in (2, 3, 4)]
    raw: dict[str, Any] = {
        "name": "parity",
        "stream": {
            "steps_per_task": 2000,
            "schedule": {"kind": "curriculum", "criterion": 0.9},
            "tasks": tasks,
        },
        "policy": {"encoder": "identity", "cell": {"kind": "leaky", "size": 24}},
        "objective": "supervised",
        "optimizer": {"kind": "adam", "lr": 1e-2},
        "rollout": {"copies": 8, "steps": 16},
        "evaluation": {"every": 500, "episodes": 16},
        "checkpoint": {"every": 1000},
        "log_every": 500,
        "runtime": {"device": "cpu"},
    }
    raw["stream"] |= changes
    return check(raw)


def trainer(folder: Path, **changes: Any) -> Trainer:
    return build(config(**changes), folder)


def test_the_next_task_begins_where_the_criterion_was_met_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole, first, second = (trainer(tmp_path / name) for name in ("whole", "cut", "cut"))
    run(whole)
    met = [segment.start for segment in whole.stream.segments][1:]
    assert met, "it learned nothing"
    performance = dict(zip(whole.evaluations.steps, whole.evaluations.performance(), strict=True))
    assert performance[met[0]][0] >= 0.9
    assert all(p[0] < 0.9 for step, p in performance.items() if step < met[0])
    assert whole.evaluations.training_end == [*met, 6000, 6000][:3]
    run(first, until=met[0] + 1000)
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    second.load_state_dict(saved)
    second.evaluations.steps, second.evaluations.returns = first.evaluations.steps, first.evaluations.returns
    assert second.stream.segments[1].start == met[0] and second.evaluations.training_end[0] == met[0]
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())
    assert [s["start"] for s in session.summary(second, 1.0)["segments"]] == [0, *met]


def test_what_was_trained_by_a_curriculum_does_not_go_on_as_something_else(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.stream.look(1000, [1.0, 0.0, 0.0])
    other = trainer(tmp_path / "other", schedule="sequential")
    with pytest.raises(ValueError, match="trained by a curriculum"):
        other.load_state_dict(first.state_dict())


def test_an_option_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep is 'al'; it must be"):
        trainer(tmp_path, schedule={"kind": "curriculum", "keep": "al"})
