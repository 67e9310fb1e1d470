"""Predictions in a plan are those of the chunks one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import LifelongError
from lifelong.agent.runtime.planned import supervised
from lifelong.agent.runtime.trainer import Trainer
from lifelong.kernels.loop import Direct
from tests.agent.strategies.test_planned import assert_alike, trainer
from tests.agent.support import assert_identical, one_by_one, run

TASKS = [{"name": f"{k}", "env": {"kind": "ImageRows", "rows_per_step": 7, "permutation": k}} for k in range(2)]
CLEARLY = {"kind": "clear", "capacity": 60, "start": 8, "policy_cloning": 0.5, "value_cloning": 0.3}
CASES: dict[str, list[Any]] = {
    "finetune": [],
    "ewc": [{"kind": "ewc", "strength": 3.0, "sequences": 16}],
    "clear": [CLEARLY],
    "der_pp and si": ["si", {"kind": "der_pp", "capacity": 60, "start": 8}],
}


def made(folder: Path, name: str, **changes: Any) -> Trainer:
    return trainer(folder, CASES[name], **{"stream": {"tasks": TASKS}, "objective": "supervised", **changes})


@pytest.mark.parametrize("name", CASES)
def test_planned_predictions_are_those_chunk_by_chunk(name: str, tmp_path: Path) -> None:
    planned, eager = (made(tmp_path / each, name) for each in "ab")
    assert planned.planned.plan is not None, planned.planned.why
    one_by_one(eager)
    while planned.step < 320 + 3 * 32:  # over a border
        planned.advance()
        while eager.step < planned.step:
            eager.advance()
    assert planned.planned.plan.kept, "no chunk was planned"
    assert_alike(planned, eager)
    sums = planned.record.sums, eager.record.sums
    for metric in ("loss/accuracy", "loss/error", "loss/total"):
        torch.testing.assert_close(*(each[metric].float() for each in sums), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["clear"])
def test_a_stopped_run_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, first, second = (made(tmp_path / each, name, checkpoint={"every": 64}) for each in "abc")
    run(whole)
    run(first, until=448)
    assert 448 <= first.step < whole.step
    second.load_state_dict(first.state_dict())
    run(second)
    assert_identical(second.shared_state(), whole.shared_state())
    assert_identical(second.own_state(), whole.own_state())


@pytest.mark.parametrize("name", ["prediction_call", "copy"])
def test_a_part_that_is_left_out_would_be_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replayed does not count in the loss; the log-probability of what was done is not stored."""
    whole = getattr(supervised, name)

    def without(*arguments: Any, **options: Any) -> Direct:
        if name == "prediction_call" and not options["add"]:
            return whole(*arguments, **options)  # type: ignore[no-any-return]
        return supervised.clear(torch.zeros(1))

    monkeypatch.setattr(supervised, name, without)
    with pytest.raises((AssertionError, LifelongError)):
        test_planned_predictions_are_those_chunk_by_chunk("clear", tmp_path)


def test_numbers_are_told(tmp_path: Path) -> None:
    lorenz = [{"name": "a", "env": {"kind": "Lorenz"}}]
    assert made(tmp_path, "finetune", stream={"tasks": lorenz}).planned.why == "predictions of numbers"


def test_a_bonus_for_the_entropy_is_told(tmp_path: Path) -> None:
    assert "bonus" in trainer(tmp_path, ["explore"], stream={"tasks": TASKS}, objective="supervised").planned.why
