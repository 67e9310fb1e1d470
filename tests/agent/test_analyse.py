"""`lifelong analyse` on a run of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lifelong
from lifelong.agent.analysis.analysis import analyse
from lifelong.agent.cli import main
from tests.agent.support import make_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyse") / "run"
    config = make_config(
        policy={"encoder": {"kind": "mlp", "hidden": [5]}},
        checkpoint={"every": 96, "keep": 9},
        strategy=["hare_tortoise"],
    )
    lifelong.run(config, folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def found(finished: Path) -> dict[str, Any]:
    return analyse(finished, steps=64, copies=16, starts=3)


def test_the_last_checkpoint_is_as_it_is_and_the_others_are_held_against_it(found: dict[str, Any]) -> None:
    drift = found["drift"]
    assert drift["steps"] == [0, 96, 192, 288, 384] and not drift["left_out"]
    for layer, rows in drift["layers"].items():
        assert rows[-1] == pytest.approx([1.0, 1.0], abs=1e-9), layer
        assert all(-1e-9 <= value <= 1 + 1e-9 for row in rows for value in row)
    assert min(drift["layers"]["output"][0]) < 0.9999  # it has learned since


def test_every_layer_is_there_with_what_it_uses(found: dict[str, Any]) -> None:
    layers = [(row["layer"], row["units"]) for row in found["layers"] if row["task"] == "maze"]
    assert layers == [("encoder.layers.0", 5), ("memory", 6), ("output", 6)]
    assert all(1 <= row["effective_rank"] <= row["units"] for row in found["layers"])


def test_points_are_those_of_the_policy_that_is_evaluated(finished: Path, found: dict[str, Any]) -> None:
    cell = lifelong.load(finished, "maze")._policy.cell.double()
    (one, _) = found["fixed_points"]
    x = torch.tensor([one["input"]], dtype=torch.float64)
    assert sum(point["starts"] for point in one["points"]) == 3
    for point in one["points"]:
        state = torch.tensor([point["state"]], dtype=torch.float64)
        assert float((cell.step(x, state)[1] - state).square().sum() / 2) == pytest.approx(point["speed"], abs=1e-12)


def test_it_is_the_same_each_time_and_nothing_is_written(finished: Path, found: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert analyse(finished, steps=64, copies=16, starts=3) == found
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_command_writes_a_page_and_the_data(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "48", "--copies", "16", "--fixed-points", "2", "--out", str(tmp_path / "out")]
    assert main(["analyse", str(finished), *options]) == 0
    told = capsys.readouterr().out
    assert "effective" in told and "likeness of the untrained policy" in told
    data = json.loads((tmp_path / "out/analysis.json").read_text())
    page = (tmp_path / "out/analysis.html").read_text()
    # charts: the plane and two over the delay; three layers' drift; three layers' overlap; two tasks' points
    assert data["trajectories"] and page.count("<svg") == 3 + 3 + 3 + 2
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is no run"),
        (["RUN", "--steps", "1"], "--steps is 1; it must be at least 2"),
        (["RUN", "--fixed-points", "-1"], "--fixed-points is -1"),
    ],
)
def test_a_mistake_is_one_sentence(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["analyse", *(str(finished) if word == "RUN" else word for word in arguments)]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and "\n" not in told


def test_a_memory_that_is_reset_at_every_step_has_no_trajectory(tmp_path: Path) -> None:
    config = make_config(policy={"reset_memory_on": "step"}, gradient="bptt", stream={"steps_per_task": 64})
    lifelong.run(config, tmp_path / "run", quiet=True)
    told = analyse(tmp_path / "run", steps=16, copies=8)
    assert told["order"] is None and told["trajectories"] == []
    assert main(["analyse", str(tmp_path / "run"), "--steps", "16", "--copies", "8"]) == 0
