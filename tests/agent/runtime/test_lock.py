"""One process at a time writes into a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from lifelong.agent import cli
from lifelong.agent.errors import ConfigError, DiskError
from lifelong.agent.runtime import lock

HOLD = """
import sys, time
from pathlib import Path
from lifelong.agent.runtime.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
FORK = """
import os, sys, time
from pathlib import Path
from lifelong.agent.runtime.lock import held
with held(Path(sys.argv[1])):
    if not os.fork():
        print("held", flush=True)  # the child has let go
    time.sleep(60)
"""
CONFIG = """
stream: {steps_per_task: 2048, tasks: [{name: cp, env: CartPole}]}
policy: {cell: {kind: elstm, size: 8}}
rollout: {copies: 8, steps: 16}
evaluation: {episodes: 2, max_steps: 20}
log_every: 512
checkpoint: {every: 1024}
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def taken(folder: Path) -> bool:
    try:
        with lock.held(folder):
            return False
    except ConfigError:
        return True


def test_a_second_process_is_refused_with_the_first_one_named(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        sentence = rf"{tmp_path} is in use by process {process.pid} on \S+; wait"
        with pytest.raises(ConfigError, match=sentence), lock.held(tmp_path):
            raise AssertionError("held twice")
    finally:
        process.kill()
        process.wait()


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    """Rank 0 of Ray's workers may outlive a driver that was killed, and goes on writing for a moment."""
    process = holder(tmp_path)
    threading.Timer(0.3, process.kill).start()
    with lock.held(tmp_path, patience=30):
        assert process.wait() == -signal.SIGKILL


def test_kill_9_lets_go_of_the_lock(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert taken(tmp_path)
    process.kill()
    process.wait()
    assert not taken(tmp_path)


def test_a_forked_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    """An asynchronous Gymnasium worker may need a while to see that its parent is gone."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        assert not taken(tmp_path)
        os.killpg(process.pid, 0)  # the child lives
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_many_at_once_get_a_folder_each(tmp_path: Path) -> None:
    places: list[Path] = []
    together = threading.Barrier(8)

    def claim() -> None:
        together.wait()
        with lock.claimed(tmp_path / "runs" / "0", others=True) as place:
            (place / "config.yaml").touch()
            places.append(place)
            together.wait()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(p.name for p in places) == ["0", *(f"0-{n}" for n in range(2, 9))]


def test_a_folder_that_was_asked_for_is_refused_if_it_is_taken_and_not_replaced(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        sentence = r"in use by process \d+ on .*; give another --out"
        with pytest.raises(ConfigError, match=sentence), lock.claimed(tmp_path, others=False):
            raise AssertionError
    finally:
        process.kill()
        process.wait()
    (tmp_path / "config.yaml").touch()
    sentence = "already holds a run; use `lifelong resume"
    with pytest.raises(ConfigError, match=sentence), lock.claimed(tmp_path, others=False):
        raise AssertionError


def test_a_start_that_fails_leaves_no_folder_and_one_that_was_killed_is_started_in_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lock.claimed(tmp_path / "runs" / "x" / "0", others=True):
        raise RuntimeError("no cluster")
    assert not (tmp_path / "runs").exists()
    killed = tmp_path / "runs" / "x" / "0"
    killed.mkdir(parents=True)
    (killed / lock.FILE).touch()
    (killed / "config.yaml.partial").write_text("na")
    with lock.claimed(killed, others=True) as place:
        assert place == killed
    (killed / "notes.txt").touch()
    with lock.claimed(killed, others=True) as place:
        assert place.name == "0-2"


def test_a_lock_whose_file_its_holder_removed_is_not_taken_for_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, a failed start removes it with its folder."""
    folder, flock = tmp_path / "run", fcntl.flock
    folder.mkdir()
    removed: list[int] = []

    def slow(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(descriptor)
            (folder / lock.FILE).unlink()
            folder.rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with lock.held(folder):
        assert (folder / lock.FILE).exists() and taken(folder)


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with lock.held(tmp_path):
        assert "has no locks" in capsys.readouterr().err


def start(work: Path, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lifelong.agent.cli", *map(str, words)],
        cwd=work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_runs_started_at_once_have_a_folder_each(tmp_path: Path) -> None:
    """shared bug 07: both took runs/x/0, mixed their metrics and deleted each other's checkpoints."""
    (tmp_path / "x.yaml").write_text(CONFIG)
    rates = ("0.001", "0.1")
    processes = [start(tmp_path, "run", "x.yaml", "--quiet", f"optimizer.lr={lr}") for lr in rates]
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error
    folders = sorted(tmp_path.glob("runs/x/*"))
    assert [folder.name for folder in folders] == ["0", "0-2"]
    used = set()
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines]
        assert steps == sorted(steps)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert json.loads((folder / "summary.json").read_text())["config"]["optimizer"] == config["optimizer"]
        used.add(str(config["optimizer"]["lr"]))
    assert used == set(rates)


def test_a_run_in_training_is_neither_resumed_nor_started_over_but_can_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG)
    process = start(tmp_path, "run", "x.yaml", "--out", "r", "--quiet", "stream.steps_per_task=20000000")
    try:
        while not list(Path("r").glob("checkpoints/0*")):
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGSTOP)
        for command in (["resume", "r"], ["run", "x.yaml", "--out", "r"], ["run", "x.yaml", "--out", "r", "--resume"]):
            assert cli.main(command) == 2
            error = capsys.readouterr().err
            assert f"r is in use by process {process.pid} on" in error and error.count("\n") == 1
        assert cli.main(["eval", "r"]) == 0
    finally:
        process.kill()
        process.wait()


def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    """A run folder may come from somebody else."""
    (run := tmp_path / "run").mkdir()
    (mine := tmp_path / "mine").write_text("precious")
    (run / lock.FILE).symlink_to(mine)
    with pytest.raises(DiskError, match="cannot write to"), lock.held(run):
        pass
    assert mine.read_text() == "precious"
