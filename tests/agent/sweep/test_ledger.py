"""The ledger of a sweep catches a peek, a second try and every change made afterwards."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lifelong.agent import cli, run
from lifelong.agent import config as configs
from lifelong.agent.errors import LedgerError
from lifelong.agent.runtime.summary import load_summary
from lifelong.agent.sweep import plan as sweep_plan
from lifelong.agent.sweep import report as sweep_report
from lifelong.agent.sweep import trials
from lifelong.agent.sweep.ledger import Entry, Ledger, entry_hash, read_entries, verify
from lifelong.agent.sweep.plan import EVALUATION, TUNING, Plan, Trial
from tests.agent.sweep.test_sweep import write_sweep

CHANGES: dict[str, Any] = {"groups": {}, "seeds": [0], "overrides": {"stream.steps_per_task": 128}}


def do(ledger: Ledger, trial: Trial) -> None:
    """A run of the sweep in this process, recorded as the sweep does it."""
    ledger.start(trial)
    run.start(trial.config, trial.folder(ledger.folder), quiet=True)
    ledger.end(trial, "finished")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return sweep_plan.load(str(write_sweep(tmp_path_factory.mktemp("plan"), **CHANGES)))


@pytest.fixture(scope="module")
def tuned(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose first phase is done; nothing is chosen yet."""
    folder = tmp_path_factory.mktemp("tuned")
    ledger = Ledger(folder)
    ledger.begin(plan.to_dict(), "two_phase", plan.mode)
    for trial in plan.trials("tiny"):
        do(ledger, trial)
    ledger.close()
    return folder


@pytest.fixture(scope="module")
def finished(plan: Plan, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep at its end."""
    folder = shutil.copytree(tuned, tmp_path_factory.mktemp("finished") / "out")
    ledger = Ledger(folder)
    trials.freeze(plan, ledger, ledger.rank(TUNING, plan.measure, plan.mode))
    for trial in trials.frozen_trials(plan, ledger):
        do(ledger, trial)
    sweep_report.write(plan, ledger)
    ledger.close()
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "out")


def rewrite(folder: Path, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Change the entries and forge the whole chain after it, as somebody would who knows how it is made."""
    entries = change(read_entries(folder / "ledger.jsonl"))
    previous = "0" * 64
    for index, entry in enumerate(entries):
        entry |= {"index": index, "previous": previous}
        entry["hash"] = previous = entry_hash(entry)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "sweep.json").unlink(missing_ok=True)  # it names the hash of the true last entry


def assert_caught(folder: Path, *words: str) -> None:
    with pytest.raises(LedgerError) as caught:
        verify(folder)
    for word in words:
        assert word in str(caught.value)


def test_a_sweep_that_kept_the_protocol_is_verified(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(finished)]) == 0
    assert "before any metric of phase two was read" in capsys.readouterr().out


def test_a_metric_of_phase_two_that_was_read_before_the_freeze_is_caught(
    plan: Plan, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tuned, tmp_path / "out")
    ledger = Ledger(folder)
    second = plan.trial(EVALUATION, "tiny", plan.candidates("tiny")[1], 7)
    # the peek: run a candidate on the other stream outside of the sweep and look at it, then choose
    run.start(second.config, second.folder(folder), quiet=True)
    peeked = ledger.read(EVALUATION, second.name, plan.measure)
    assert peeked == pytest.approx(load_summary(second.folder(folder))["average_performance"])
    shutil.rmtree(second.folder(folder))
    trials.freeze(plan, ledger, ledger.rank(TUNING, plan.measure, plan.mode))
    for trial in trials.frozen_trials(plan, ledger):
        do(ledger, trial)
    results = sweep_report.write(plan, ledger)
    ledger.close()
    assert_caught(folder, "phase two before the choice was frozen", "a metric was read")
    assert cli.main(["verify", str(folder)]) == 1
    assert "before the choice was frozen" in capsys.readouterr().err
    assert results.verdict[0].startswith("The ledger does not hold")  # so do the report and the command
    assert "The ledger does not hold" in (folder / "report.html").read_text()


def test_a_second_try_of_phase_two_is_caught(plan: Plan, copy: Path) -> None:
    ledger = Ledger(copy)
    trial = trials.frozen_trials(plan, ledger)[0]
    shutil.rmtree(trial.folder(copy))
    do(ledger, trial)  # start() sees that it ran before, and says so
    ledger.close()
    assert_caught(copy, trial.name, "went on after its end")


def test_a_second_start_of_phase_two_is_caught(copy: Path) -> None:
    def again(entries: list[Entry]) -> list[Entry]:
        start = next(e for e in entries if e["event"] == "start" and e["phase"] == EVALUATION)
        return [*entries, dict(start)]

    rewrite(copy, again)
    assert_caught(copy, "was started again")


def test_an_entry_that_was_edited_is_caught(copy: Path) -> None:
    path = copy / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    index = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "read")
    entry = json.loads(lines[index]) | {"value": 0.987}
    lines[index] = json.dumps(entry) + "\n"
    path.write_text("".join(lines))
    assert_caught(copy, f"entry {index} was changed")
    with pytest.raises(LedgerError, match=f"entry {index} was changed"):
        Ledger(copy)  # the sweep does not go on from it either


@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_an_entry_that_was_deleted_is_caught(which: str, copy: Path) -> None:
    path = copy / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    del lines[{"first": 0, "middle": len(lines) // 2, "last": -1}[which]]
    path.write_text("".join(lines))
    assert_caught(copy, "sweep.json was made from" if which == "last" else "an entry is missing")


def test_a_change_of_any_byte_of_the_ledger_is_caught(copy: Path) -> None:
    path = copy / "ledger.jsonl"
    whole = path.read_bytes()
    for where in range(0, len(whole), 101):
        for changed in (whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1 :], whole[:where], b" " + whole):
            path.write_bytes(changed)
            with pytest.raises(LedgerError):
                verify(copy)


def test_an_entry_that_is_forged_with_its_hash_is_no_surprise(copy: Path) -> None:
    whole, values = read_entries(copy / "ledger.jsonl"), [None, "x", 7, [], {"a": 1}]
    for index, entry in enumerate(whole):
        for place, key in enumerate(entry):
            forged = [dict(e) for e in whole]
            forged[index][key] = values[(index + place) % len(values)]
            rewrite(copy, lambda _, forged=forged: forged)
            with contextlib.suppress(LedgerError):  # nothing else is raised
                verify(copy)
            (copy / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in whole))


@pytest.mark.parametrize("name", ["ledger.jsonl", "frozen.json", "sweep.json"])
@pytest.mark.parametrize("damage", ["edited", "emptied", "removed"])
def test_a_sweep_that_was_edited_ends_with_exit_1(
    name: str, damage: str, plan: Plan, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_sweep(tmp_path, **CHANGES)
    assert cli.main(["sweep", str(config), "--out", str(copy), "--quiet"]) == 0
    before = (copy / name).read_text()
    if damage == "removed" and name != "sweep.json":  # that is written again
        (copy / name).unlink()
    elif damage == "emptied":
        (copy / name).write_text("")
    else:
        (copy / name).write_text(before.replace("0.001", "0.002").replace('"head": "', '"head": "0'))
        assert (copy / name).read_text() != before
    capsys.readouterr()
    for command in (["verify", str(copy)], ["sweep", str(config), "--out", str(copy), "--quiet"]):
        assert cli.main(command) == 1
        told = capsys.readouterr().err
        assert told.startswith("lifelong: ") and len(told.splitlines()) == 1 and "Traceback" not in told


def test_a_choice_that_was_changed_afterwards_is_caught(copy: Path) -> None:
    path = copy / "frozen.json"
    path.write_text(path.read_text().replace("0.001", "0.002").replace("0.03", "0.04"))
    assert_caught(copy, "frozen.json is not the file that was frozen")


def test_a_choice_that_was_not_the_best_is_caught(copy: Path) -> None:
    def swap(entries: list[Entry]) -> list[Entry]:
        reads = [e for e in entries if e["event"] == "read" and e["final"] and e["phase"] == TUNING]
        best = max(reads, key=lambda e: e["value"])
        for entry in reads:
            entry["value"] = best["value"] - 1 if entry is best else best["value"] + 1
        return entries

    rewrite(copy, swap)
    assert_caught(copy, "not the best of phase one")


def test_a_run_with_another_config_than_the_frozen_one_is_caught(copy: Path) -> None:
    path = copy / "evaluation/tiny,seed=8/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["optimizer"]["lr"] *= 2
    path.write_text(yaml.safe_dump(config))

    assert_caught(copy, "tiny,seed=8", "did not have the frozen config")

    def accept(entries: list[Entry]) -> list[Entry]:
        start = next(e for e in entries if e["event"] == "start" and e["run"] == "tiny,seed=8")
        start["config"] = sweep_plan.digest(configs.to_dict(configs.load(str(path))))
        return entries

    rewrite(copy, accept)  # even if the ledger says that this was the config: frozen.json says another
    assert_caught(copy, "tiny,seed=8", "did not have the frozen config")


@pytest.mark.parametrize("name", ["evaluation.npz", "summary.json"])
def test_results_that_were_replaced_are_caught(name: str, copy: Path) -> None:
    path = copy / "evaluation/tiny,seed=7" / name
    shutil.copy(copy / "evaluation/tiny,seed=8" / name, path)
    assert_caught(copy, f"{name} of run tiny,seed=7")


@pytest.mark.parametrize(("key", "words"), [("seed", "were used by both phases"), ("data", "a task was used by both")])
def test_seeds_and_tasks_of_both_phases_are_caught(key: str, words: str, copy: Path) -> None:
    def overlap(entries: list[Entry]) -> list[Entry]:
        starts = [entry for entry in entries if entry["event"] == "start"]
        starts[-1][key] = starts[0][key]
        return entries

    rewrite(copy, overlap)
    assert_caught(copy, words)


def test_tuning_after_the_freeze_is_caught(copy: Path, plan: Plan) -> None:
    ledger = Ledger(copy)
    ledger.start(plan.trial(TUNING, "tiny", {"optimizer.lr": 0.5}, 3))
    ledger.close()
    assert_caught(copy, "phase one after the choice was frozen")


def test_an_interrupted_run_may_go_on_and_a_torn_line_is_no_entry(plan: Plan, copy: Path) -> None:
    path = copy / "ledger.jsonl"
    (copy / "sweep.json").unlink()
    lines = path.read_text().splitlines(keepends=True)
    cut = max(i for i, line in enumerate(lines) if json.loads(line)["event"] == "end")
    path.write_text("".join(lines[:cut]) + lines[cut][:40])  # killed while it wrote the end of the last run
    ledger = Ledger(copy)
    trial = trials.frozen_trials(plan, ledger)[-1]
    assert len(ledger.entries) == cut and ledger.status(EVALUATION, trial.name) == "running"
    ledger.start(trial)
    ledger.end(trial, "finished")
    ledger.close()
    assert [entry["event"] for entry in verify(copy)][-2:] == ["resume", "end"]


def test_a_metric_is_read_once_and_remembered(plan: Plan, copy: Path) -> None:
    ledger = Ledger(copy)
    before = len(ledger.entries)
    value = ledger.read(EVALUATION, "tiny,seed=7", plan.measure)
    assert len(ledger.entries) == before
    assert value == pytest.approx(load_summary(copy / "evaluation/tiny,seed=7")["average_performance"])
    ledger.close()


def test_a_folder_without_a_sweep_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "holds no sweep" in capsys.readouterr().err
