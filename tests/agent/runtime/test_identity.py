"""A run goes on with what it was trained with, or says that it does not and records it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lifelong.agent import config as configs
from lifelong.agent.cli import main
from lifelong.agent.runtime import checkpoint, machine
from lifelong.agent.runtime.identity import differences
from lifelong.agent.runtime.machine import identity
from lifelong.kernels import dispatch

RAW: dict[str, Any] = {
    "name": "small",
    "stream": {"tasks": [{"name": "maze", "env": {"kind": "TMaze", "corridor": 3}, "steps": 128}]},
    "policy": {"encoder": {"kind": "mlp", "hidden": [8]}, "cell": {"kind": "elstm", "size": 4}},
    "gradient": "rtrl",
    "rollout": {"copies": 4, "steps": 4},
    "evaluation": {"every": 64, "episodes": 2, "max_steps": 8},
    "checkpoint": {"every": 64},
    "runtime": {"device": "cpu"},
}
needs_compiler = pytest.mark.skipif(
    "cpu" not in dispatch.backends(torch.device("cpu")).values(), reason="no C compiler: there are no compiled kernels"
)


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A run with a checkpoint in its middle, as after a kill."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RAW))
    assert main(["run", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    shutil.rmtree(checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1])
    return tmp_path / "run"


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def pretend(folder: Path, **changes: Any) -> None:
    """Let the newest checkpoint say that it was computed with something else."""
    manifest = checkpoint.checkpoints(folder / "checkpoints")[-1] / "manifest.json"
    content = json.loads(manifest.read_text())
    content["identity"].update(changes)
    manifest.write_text(json.dumps(content))


@needs_compiler
def test_a_run_does_not_go_on_with_other_kernels_unless_that_is_allowed(
    started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(started)
    with dispatch.force("torch"):
        assert main(["resume", str(started), "optimizer.lr=1e-4", "--quiet"]) == 2
        told = capsys.readouterr().err.strip()
        assert "kernels cpu" in told and "kernels torch" in told and "--allow-inexact" in told
        assert len(told) <= 300 and "\n" not in told and files(started) == before
        assert main(["resume", str(started), "--allow-inexact", "--quiet"]) == 0
    (line,) = map(json.loads, (started / "changes.jsonl").read_text().splitlines())
    assert [line[key] for key in ("step", "kind", "key", "old", "new")] == [64, "inexact", "kernels", "cpu", "torch"]
    assert json.loads((started / "summary.json").read_text())["changes"] == [line]


@needs_compiler
def test_a_process_without_a_compiler_says_so_and_stops(started: Path, tmp_path: Path) -> None:
    empty = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "CC": ""}
    resume = [sys.executable, "-m", "lifelong.agent.cli", "resume", str(started), "--quiet"]
    ended = subprocess.run(resume, env={**os.environ, **empty}, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "kernels cpu" in ended.stderr and "kernels torch" in ended.stderr and "--allow-inexact" in ended.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("torch", "2.1.0"), ("python", "2.7"), ("threads", 16), ("device", "NVIDIA H100 80GB HBM3"), ("numpy", "1.0")],
)
def test_what_differs_is_named(name: str, value: Any, started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(started, **{name: value})
    assert main(["resume", str(started), "--quiet"]) == 2
    assert f"trained with {name} {value}; here it is {name} " in capsys.readouterr().err


def test_everything_can_differ_in_one_short_sentence(started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(started, **dict.fromkeys(("torch", "numpy", "python", "lifelong", "device", "compiler"), "x" * 500))
    assert main(["resume", str(started), "--quiet"]) == 2
    assert len(capsys.readouterr().err.replace(str(started), "").strip()) <= 300


def test_the_same_process_goes_on_without_a_question(started: Path) -> None:
    assert main(["resume", str(started), "--quiet"]) == 0
    assert not (started / "changes.jsonl").exists()


def test_threads_that_are_asked_for_are_a_difference(started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(started), "runtime.threads=2", "--quiet"]) == 2
    assert "threads 1; here it is threads 2" in capsys.readouterr().err
    assert main(["resume", str(started), "runtime.threads=2", "--allow-inexact", "--quiet"]) == 0
    kinds = [json.loads(line)["kind"] for line in (started / "changes.jsonl").read_text().splitlines()]
    assert sorted(kinds) == ["inexact", "override"]


def test_a_run_with_as_many_threads_as_were_free_goes_on_with_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**RAW, "runtime": {"device": "cpu", "threads": "auto"}}))
    run, begun, free = tmp_path / "run", torch.get_num_threads(), 2
    monkeypatch.setattr(machine, "cores", lambda: free)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    try:
        assert main(["run", str(tmp_path / "small.yaml"), "--out", str(run), "--quiet"]) == 0
        assert torch.get_num_threads() == 2
        shutil.rmtree(checkpoint.checkpoints(run / "checkpoints")[-1])
        free = 1
        assert main(["resume", str(run), "--quiet"]) == 0
        assert torch.get_num_threads() == json.loads((run / "summary.json").read_text())["machine"]["threads"] == 2
    finally:
        torch.set_num_threads(begun)


def test_an_adapter_is_a_part_of_the_identity_only_where_it_is_used() -> None:
    config, cpu = configs.check(RAW), torch.device("cpu")
    without = identity(config, cpu)
    config.stream.tasks[0].env = {"kind": "gymnasium", "id": "CartPole-v1"}
    assert set(identity(config, cpu)) - set(without) == {"gymnasium"}
    assert differences(without, identity(config, cpu)) == []


def test_an_operation_that_one_of_them_does_not_know_is_no_difference() -> None:
    old, new = {"kernels": {"a": "cpu", "b": "cpu"}}, {"kernels": {"b": "cpu", "c": "torch"}}
    assert differences(old, new) == []
    assert [(c.old, c.new) for c in differences(old, {"kernels": {"a": "torch", "b": "torch"}})] == [("cpu", "torch")]


def test_a_checkpoint_that_says_nothing_of_it_is_of_an_older_version(
    started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = checkpoint.checkpoints(started / "checkpoints")[-1] / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["identity"]
    manifest.write_text(json.dumps(content))
    assert main(["resume", str(started), "--quiet"]) == 2
    assert "older lifelong" in capsys.readouterr().err
