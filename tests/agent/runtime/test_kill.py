"""kill -9 at random moments and resume: bit for bit the run that was never killed (on CPU)."""

from __future__ import annotations

import json
import operator
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lifelong.agent.runtime import checkpoint
from tests.agent.support import THREE_TASKS

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
STRATEGIES = ["clear", "ewc", "gpm"]


def lifelong(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lifelong.agent.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output.decode()


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bitwise equality of nested states."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{index}")
    else:
        assert a == b, where


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: (step, value) of every point} of a run folder, as TensorBoard reads it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars, texts = events.Tags()["scalars"], events.Tags()["tensors"]
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in scalars}
    return points | {tag: [(e.step, 0.0) for e in events.Tensors(tag)] for tag in texts}


def depends_on_the_clock(tag: str) -> bool:
    return tag.startswith(("speed/", "cluster/", "runners/"))


def assert_log_in_order(folder: Path) -> None:
    """No line or point of a log is there twice, or behind a later one."""
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    steps = [[line["step"] for line in lines], *([step for step, _ in points] for points in curves(folder).values())]
    for series in steps:
        assert series == sorted(set(series))
    assert not list(folder.glob("*.partial")) and not list(folder.glob("checkpoints/.partial*"))


def assert_same_run(killed: Path, whole: Path) -> None:
    """Parameters, carry and everything else in the last checkpoint; evaluation.npz and metrics.jsonl byte for byte;
    timing.jsonl and TensorBoard point for point."""
    (state_killed, _), (state_whole, _) = (
        checkpoint.load(killed / "checkpoints"),
        checkpoint.load(whole / "checkpoints"),
    )
    if "weight" in state_whole["carry"]:  # of rtrl
        assert state_whole["carry"]["weight"].abs().sum() > 0
    assert_equal(*({k: v for k, v in state.items() if k != "manifest"} for state in (state_killed, state_whole)))
    for name in ("evaluation.npz", "evaluation.jsonl", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert_log_in_order(killed)
    timing = ([json.loads(x)["step"] for x in (f / "timing.jsonl").read_text().splitlines()] for f in (killed, whole))
    assert operator.eq(*timing)
    drawn, expected = curves(killed), curves(whole)
    assert drawn.keys() == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in drawn[tag]] == [step for step, _ in points], tag
        if not depends_on_the_clock(tag):
            np.testing.assert_array_equal(drawn[tag], points, tag)


def kill_and_resume(config: str, folder: Path, whole: Path, shares: list[float], overrides: list[str]) -> None:
    """Run `config`, kill -9 once the log has each of `shares` of its final length and a random moment more; resume."""
    length = (whole / "metrics.jsonl").stat().st_size
    log = folder / "metrics.jsonl"
    draw = random.Random(config + repr(shares))
    process = lifelong("run", config, "--out", folder, "--quiet", *overrides)
    for share in sorted(shares):
        while process.poll() is None and not (log.exists() and log.stat().st_size >= share * length):
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.2))
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = lifelong("resume", folder, "--quiet")
    finish(process)


@pytest.mark.parametrize(
    "strategy", [STRATEGIES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in STRATEGIES[1:])]
)
def test_a_killed_run_resumes_bit_for_bit(strategy: str, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(THREE_TASKS)
    finish(lifelong("run", config, "--out", tmp_path / "whole", "--quiet", f"strategy={strategy}"))
    draw = random.Random(strategy)
    shares = [0.0, draw.uniform(0.2, 0.6)]  # before the first checkpoint, and anywhere
    kill_and_resume(str(config), tmp_path / "killed", tmp_path / "whole", shares, [f"strategy={strategy}"])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_quickstart_killed_five_times_resumes_bit_for_bit(tmp_path: Path) -> None:
    finish(lifelong("run", "quickstart", "--out", tmp_path / "whole", "--quiet"))
    draw = random.Random(5)
    shares = [draw.uniform(0.0, 0.9) for _ in range(5)]
    kill_and_resume("quickstart", tmp_path / "killed", tmp_path / "whole", shares, [])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_a_checkpoint_and_exits_with_3(number: signal.Signals, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(THREE_TASKS)
    finish(lifelong("run", config, "--out", tmp_path / "whole", "--quiet"))
    process = lifelong("run", config, "--out", tmp_path / "stopped", "--quiet")
    while not list(tmp_path.glob("stopped/checkpoints/0*")):
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 3 and b"lifelong resume" in output, output
    finish(lifelong("resume", tmp_path / "stopped", "--quiet"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_strategy_can_be_swapped_in_the_middle_of_a_run(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(THREE_TASKS)
    process = lifelong("run", config, "--out", tmp_path / "run", "--quiet", "strategy=gpm")
    while not list(tmp_path.glob("run/checkpoints/0*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait()
    finish(lifelong("resume", tmp_path / "run", "--quiet", "strategy=[gpm, clear]"))
    state, _ = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert list(state["strategies"]) == ["gpm"] and list(state["strategy_shards"]) == ["clear"]
    assert state["strategies"]["gpm"]["protected"] and state["strategy_shards"]["clear"]["replay"]["size"] == 64
