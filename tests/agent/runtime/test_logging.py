"""Everything that a run appends to is cut back by one rule, and costs the same however long the run is."""

from __future__ import annotations

import errno
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong.agent import cli
from lifelong.agent.errors import CheckpointError, DiskError
from lifelong.agent.runtime.appended import METRICS, POINTS, TIMING, Appended
from lifelong.agent.runtime.logging import RunLog
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.records import framed
from tests.agent.runtime.test_kill import assert_log_in_order, curves
from tests.agent.support import make_trainer


@pytest.mark.parametrize("size", [0, 1, 7, 40_000])
def test_a_record_is_framed_as_tensorboard_frames_it(size: int) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    record, theirs = np.random.default_rng(size).bytes(size), io.BytesIO()
    RecordWriter(theirs).write(record)
    assert framed(record) == theirs.getvalue()


FILES = (METRICS, TIMING, POINTS)


def evaluations(points: int, episodes: int = 3) -> Evaluations:
    made = Evaluations(["a", "b"], [(0.0, 1.0), (0.0, 2.0)], [1, 2])
    draw = np.random.default_rng(0)
    for step in range(points):
        made.add(step, draw.standard_normal((2, episodes)))
    return made


def write(log: RunLog, steps: range, seen: Evaluations) -> None:
    """What a run writes in these steps."""
    for step in steps:
        log.scalars(step, {"loss/policy": step / 7})
        log.clock(step, {"speed/env_steps_per_second": time.time()})
        seen.add(step, np.full((2, 3), step / 7))
        log.evaluation(seen)


def test_a_run_that_goes_on_writes_every_line_and_point_once(tmp_path: Path) -> None:
    log, seen = RunLog(tmp_path, {}), evaluations(0)
    log.text("config", "x")
    write(log, range(1, 5), seen)
    sizes = log.sizes()
    write(log, range(5, 9), seen)  # not in the checkpoint
    log.close()
    for _ in range(2):  # it is killed twice before it saves again
        seen = evaluations(0)
        seen.restore(tmp_path, sizes["evaluation.jsonl"])
        assert seen.steps == [1, 2, 3, 4]
        log = RunLog(tmp_path, sizes)
        log.tensor(seen)
        assert Evaluations.load(tmp_path / "evaluation.npz").steps == [1, 2, 3, 4]
        write(log, range(5, 7), seen)
        log.close()
    for name in FILES:
        assert [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    drawn = curves(tmp_path)
    assert [s for s, _ in drawn["speed/env_steps_per_second"]] == [s for s, _ in drawn["loss/policy"]] == [*range(1, 7)]
    assert [step for step, _ in drawn["config/text_summary"]] == [0]
    assert len(list(tmp_path.glob("events.*"))) == 2  # of the kill in between nothing is left


def test_a_run_killed_before_its_first_checkpoint_leaves_nothing_of_its_log(tmp_path: Path) -> None:
    log, seen = RunLog(tmp_path, {}), evaluations(0)
    write(log, range(4), seen)
    log.close()
    (tmp_path / "config.yaml").touch()
    RunLog(tmp_path, {}).close()
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", *sorted(FILES)]
    assert all((tmp_path / name).stat().st_size == 0 for name in FILES)


def test_curves_stay_in_order_when_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads event files by name, and the name is a time."""
    sizes: dict[str, int] = {}
    for attempt, now in enumerate([2e9, 1e9, 1.5e9]):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        log = RunLog(tmp_path, sizes)
        for step in range(3 * attempt, 3 * attempt + 3):
            log.scalars(step, {"loss": float(step)})
        sizes = log.sizes()
        log.close()
    assert curves(tmp_path) == {"loss": [(step, float(step)) for step in range(9)]}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_log_that_is_not_all_there_is_an_error_and_nothing_is_touched(name: str, damage: str, tmp_path: Path) -> None:
    log = RunLog(tmp_path, {})
    write(log, range(4), evaluations(0))
    sizes = log.sizes()
    log.close()
    os.truncate(tmp_path / name, 7)
    if damage == "gone":
        (tmp_path / name).unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=f"{name} has {7 if damage == 'cut' else 0} bytes, but had") as caught:
        RunLog(tmp_path, sizes)
    assert len(str(caught.value)) <= 300 + len(str(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_event_files_that_were_deleted_to_make_room_are_not_missed(tmp_path: Path) -> None:
    log = RunLog(tmp_path, {})
    write(log, range(4), evaluations(0))
    sizes = log.sizes()
    log.close()
    next(tmp_path.glob("events.*")).unlink()
    RunLog(tmp_path, sizes).close()


def test_a_checkpoint_is_of_a_log_that_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path, {})
    write(log, range(2), evaluations(0))
    synced = []
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(Path(os.readlink(f"/proc/self/fd/{d}"))))
    sizes = log.sizes()
    assert {path.name for path in synced} == {*sizes, tmp_path.name} and synced[-1] == tmp_path


def test_a_full_disk_is_one_sentence_and_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write_out = Appended(tmp_path / "metrics.jsonl"), os.write
    file.write(b"first\n")

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_out(descriptor, data[:3])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(
        DiskError, match=r"cannot write .*metrics.jsonl: No space left on device; what was saved is kept"
    ):
        file.write(b"second\n")
    assert file.path.read_bytes() == b"first\n"


@pytest.mark.parametrize("name", [*FILES, "events.out.tfevents.1.a.b.c", "evaluation.npz.partial"])
def test_a_disk_that_is_full_at_any_file_of_the_log_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(tmp_path, {})
    monkeypatch.setattr(log.events, "_path", lambda: tmp_path / "events.out.tfevents.1.a.b.c")
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/dev/full")
    log.metrics, log.timing, log.points = (Appended(tmp_path / n) for n in FILES)
    with pytest.raises(DiskError, match="No space left on device"):
        write(log, range(1), evaluations(0))


# ---- evaluations -----------------------------------------------------------------------------------------------------


def test_evaluations_come_back_bit_for_bit(tmp_path: Path) -> None:
    made, file = evaluations(0), Appended(tmp_path / "evaluation.jsonl")
    for step, returns in zip(evaluations(50).steps, evaluations(50).returns, strict=True):
        made.add(step, returns * 10.0 ** (step - 25))
        file.write(made.line().encode())
    again = evaluations(0)
    again.restore(tmp_path, file.size)
    assert again.steps == made.steps and (again.tensor() == made.tensor()).all()


def test_whoever_reads_a_run_in_training_sees_points_that_are_not_in_the_tensor_yet(tmp_path: Path) -> None:
    log, seen = RunLog(tmp_path, {}), evaluations(0)
    write(log, range(99), seen)
    assert len(Evaluations.load(tmp_path / "evaluation.npz").steps) < 99
    with open(tmp_path / "evaluation.jsonl", "a") as file:
        file.write('{"step": 99, "ret')  # in this moment
    read = Evaluations.of(tmp_path)
    assert read.steps == seen.steps and (read.tensor() == seen.tensor()).all()


def test_bytes_written_for_an_evaluation_do_not_grow_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    save = Evaluations.save

    def count(self: Evaluations, path: Path) -> None:
        save(self, path)
        written.append(path.stat().st_size)

    monkeypatch.setattr(Evaluations, "save", count)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    cost = {}
    for points in (200, 2000):
        written.clear()
        folder = tmp_path / str(points)
        folder.mkdir()
        write(RunLog(folder, {}), range(points), evaluations(0))
        cost[points] = (sum(written) + (folder / "evaluation.jsonl").stat().st_size) / points
        assert written[-1] >= 0.9 * sum(r.nbytes for r in evaluations(points).returns)  # at most a tenth is missing
    assert cost[2000] < 1.3 * cost[200]


class Untouched(list[Any]):
    """A list that must not be gone through."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the whole history was read")


def test_a_chunk_and_an_evaluation_read_nothing_but_the_last_points(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    for _ in range(50):
        trainer.evaluations.add(0, np.zeros((2, trainer.config.evaluation.episodes)))
    trainer.evaluations.steps = Untouched(trainer.evaluations.steps)
    trainer.evaluations.returns = Untouched(trainer.evaluations.returns)
    log = RunLog(tmp_path, {})
    log.enough = 10_000
    trainer.advance()
    trainer.evaluate(log, None)
    Progress(100, quiet=True).update(trainer.step, trainer.task_name(), trainer.performance())
    trainer.save(log)
    assert len(trainer.evaluations.steps) == 51


def test_a_checkpoint_does_not_hold_the_history_of_evaluations(tmp_path: Path) -> None:
    sizes = []
    for points in (1, 2000):
        trainer = make_trainer(tmp_path / str(points))
        log = RunLog(trainer.record.folder, {})
        log.enough = 10_000
        for _ in range(points):
            trainer.evaluations.add(0, np.zeros((2, trainer.config.evaluation.episodes)))
            log.evaluation(trainer.evaluations)
        trainer.advance()
        trainer.save(log)
        sizes.append(sum(path.stat().st_size for path in trainer.record.folder.glob("checkpoints/*/*")))
    assert abs(sizes[1] - sizes[0]) < 100


# ---- a whole run -----------------------------------------------------------------------------------------------------

CONFIG = """
stream: {steps_per_task: 1024, tasks: [{name: cp, env: CartPole}]}
policy: {cell: {kind: elstm, size: 8}}
rollout: {copies: 8, steps: 16}
evaluation: {every: 256, episodes: 2, max_steps: 20}
log_every: 128
checkpoint: {every: 512, keep: 2}
"""


def test_a_resumed_run_whose_log_was_cut_says_so_and_one_that_is_too_long_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG)
    assert cli.main(["run", "x.yaml", "--out", "r", "--quiet"]) == 0
    whole = {name: Path("r", name).read_bytes() for name in ("metrics.jsonl", "evaluation.jsonl", "evaluation.npz")}
    steps = curves(Path("r"))
    next(Path("r").glob("checkpoints/*1024/state.pt")).write_bytes(b"")  # the run goes on from step 512
    for name in FILES:
        with open(f"r/{name}", "ab") as file:
            file.write(b"of a stranger\n")
    assert cli.main(["resume", "r", "--quiet"]) == 0
    assert {name: Path("r", name).read_bytes() for name in whole} == whole
    assert_log_in_order(Path("r"))
    assert {tag: [s for s, _ in points] for tag, points in curves(Path("r")).items()} == {
        tag: [s for s, _ in points] for tag, points in steps.items()
    }
    capsys.readouterr()
    os.truncate("r/metrics.jsonl", 10)
    assert cli.main(["resume", "r", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metrics.jsonl has 10 bytes" in error
