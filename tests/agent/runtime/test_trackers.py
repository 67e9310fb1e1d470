"""Trackers hold the same numbers as metrics.jsonl, in a run that was stopped and resumed, too."""

from __future__ import annotations

import csv
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifelong.agent import cli

CONFIG = """
stream: {steps_per_task: 512, tasks: [{name: "cart, pole", env: CartPole}]}
policy: {encoder: identity, cell: {kind: elstm, size: 4}}
rollout: {copies: 8, steps: 8}
evaluation: {every: 128, episodes: 2, max_steps: 16}
checkpoint: {every: 256}
log_every: 128
runtime: {device: cpu}
"""

Points = dict[tuple[int, str], float]


def run(folder: Path, trackers: str) -> Path:
    """A run that lost its last checkpoint and all that came after the one before, and was resumed."""
    (folder / "x.yaml").write_text(CONFIG)
    arguments = ["run", str(folder / "x.yaml"), "--out", str(folder / "run"), "--quiet", f"trackers={trackers}"]
    assert cli.main(arguments) == 0
    (folder / "run/summary.json").unlink()
    newest = max((folder / "run/checkpoints").iterdir())
    (newest / "state.pt").write_bytes(b"")
    assert cli.main(["resume", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def logged(folder: Path) -> Points:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], name): value for line in lines for name, value in line.items() if name != "step"}


def test_csv_has_every_number_once(tmp_path: Path) -> None:
    folder = run(tmp_path, "[csv]")
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    points = {(int(row["step"]), row["name"]): float(row["value"]) for row in rows}
    assert points == logged(folder) and len(rows) == len(points) > 50


def test_mlflow_has_every_number_once_and_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run(tmp_path, "[mlflow, csv]")
    client = tracking.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("lifelong").experiment_id])
    history = {key: client.get_metric_history(found.info.run_id, key) for key in found.data.metrics}
    points = [((point.step, key), point.value) for key, kept in history.items() for point in kept]
    expected = {(step, name.replace(",", "_")): value for (step, name), value in logged(folder).items()}
    assert dict(points) == pytest.approx(expected) and len(points) == len(expected)
    assert found.data.params["policy.cell.size"] == "4" and found.info.status == "FINISHED"


def records(data: bytes) -> Iterator[bytes]:
    """The records of an offline run: a log of LevelDB (blocks of 32 KiB, pieces with checksum, length and type)."""
    at, whole = 7, b""  # behind the head of the file
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # the only piece, or the last
            yield whole
            whole = b""


def test_wandb_has_every_number_offline_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run(tmp_path, "[wandb]")
    points: Points = {}
    runs = set()
    for file in sorted(folder.rglob("*.wandb")):
        for data in records(file.read_bytes()):
            record = proto.Record.FromString(data)
            if record.HasField("run"):
                runs.add(record.run.run_id)
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = items.get("_step", record.history.step.num)
            points |= {(step, name): value for name, value in items.items() if not name.startswith("_")}
    assert points == pytest.approx(logged(folder)) and len(runs) == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "x.yaml").write_text(CONFIG)
    assert cli.main(["run", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "r"), f"trackers=[{name}]"]) == 2
    assert f"pip install 'lifelong[{name}]'" in capsys.readouterr().err


def test_an_unknown_tracker_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "quickstart", "trackers=[wandbb]"]) == 2
    assert "did you mean 'wandb'" in capsys.readouterr().err
