"""The ledger of a sweep: an append-only, hash-chained record of every run and of every metric that was looked at.

`ledger.jsonl` has one entry a line. Each holds the hash of the one before, so that none can be changed, taken out or
put in later without breaking the chain. `violations` checks from the ledger and the files beside it that the protocol
was kept: no metric of the second phase was seen before the choice was frozen, each of its runs happened once, and what
was evaluated is what was frozen. Whoever writes the whole chain anew can forge it; publish the hash of the last entry
to rule that out.

The protocol is that of Cha & Cho, *Hyperparameters in Continual Learning: A Reality Check* (TMLR 2025).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError, DiskError, LedgerError
from lifelong.agent.files import NUMBER, check_shape, parse_json, read_json, sync, write_json
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.runtime.summary import load_summary
from lifelong.agent.sweep.plan import EVALUATION, PHASE_FOLDERS, TUNING, Trial, data_of, digest

Entry = dict[str, Any]

START = "0" * 64  # what the first entry names as the one before
RESULT_FILES = ("config.yaml", "evaluation.npz", "summary.json")

#: what every entry has at least, and what those of an event have besides (see `agent.files.parse_json`)
ENTRY: dict[str, Any] = {"index": int, "time": str, "event": str, "previous": str, "hash": str}
_RUN: dict[str, Any] = {"phase": int, "run": str}
SHAPES: dict[str, Any] = {
    "begin": {"plan": str, "protocol": str, "mode": str},
    "start": {**_RUN, "group": str, "parameters": {}, "seed": int, "config": str, "data": [str]},
    "resume": _RUN,
    "read": {**_RUN, "step": int, "value": NUMBER, "final": bool},
    "end": {**_RUN, "status": str, "reason": str, "files": {}},
    "freeze": {"sha256": str},
}
#: frozen.json
FROZEN: dict[str, Any] = {"groups": {str: {"parameters": {}, "runs": {str: str}}}}


def entry_hash(entry: Mapping[str, Any]) -> str:
    """SHA-256 of an entry without its own hash."""
    return digest({key: value for key, value in entry.items() if key != "hash"})


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file; None if it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


class Ledger:
    """The ledger of the sweep in `folder`, opened for writing; only one process can have it open.

    Raises:
        ConfigError: another process has it open.
        LedgerError: its chain is broken.
        DiskError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "ledger.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+b")  # noqa: SIM115 (open as long as the sweep)
            sync(folder)
        except OSError as error:
            raise DiskError(f"cannot write to {folder}: {error.strerror}") from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise ConfigError(f"another process is running the sweep in {folder}") from error
        except OSError as error:
            self.file.close()
            raise DiskError(f"cannot lock {self.path}: {error.strerror}; put the sweep on another disk") from error
        written = self.path.read_bytes()
        self.file.truncate(written.rfind(b"\n") + 1)  # a line that was cut off by a kill was never an entry
        self.entries = read_entries(self.path)
        for problem in _chain(self.entries):
            raise LedgerError(f"{self.path}: {problem}")

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        return str(self.entries[-1]["hash"]) if self.entries else START

    def append(self, event: str, **facts: Any) -> None:
        """Write an entry; it is on the disk when this returns."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        entry = {"index": len(self.entries), "time": now, "event": event, **facts, "previous": self.head}
        entry["hash"] = entry_hash(entry)
        try:
            self.file.write(_line(entry) + b"\n")
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise DiskError(f"cannot write to {self.path}: {error.strerror}; what was written is kept") from error
        self.entries.append(entry)

    def find(self, event: str, phase: int | None = None, run: str | None = None) -> list[Entry]:
        """The entries of an event, of one phase or run if asked for."""
        return [
            e
            for e in self.entries
            if e["event"] == event and phase in (None, e.get("phase")) and run in (None, e.get("run"))
        ]

    # ---- what the sweep does, and what it is told ------------------------------------------------------------------

    def begin(self, plan: Mapping[str, Any], protocol: str, mode: str) -> None:
        """The first entry: what is going to be done.

        Raises:
            LedgerError: a sweep has run here, and its ledger is gone: its results would prove nothing.
        """
        for name in (*PHASE_FOLDERS.values(), "frozen.json", "sweep.json"):
            if (self.folder / name).exists():
                raise LedgerError(f"{self.folder} has {name}, but no entry in its ledger: that was removed")
        self.append("begin", plan=digest(plan), protocol=protocol, mode=mode)

    def start(self, trial: Trial) -> None:
        """A run starts, or goes on after an interruption."""
        if self.find("start", trial.phase, trial.name):
            self.append("resume", phase=trial.phase, run=trial.name)
            return
        self.append(
            "start",
            phase=trial.phase,
            run=trial.name,
            group=trial.group,
            parameters=trial.parameters,
            seed=trial.seed,
            config=digest(configs.to_dict(trial.config)),
            data=sorted(data_of(trial.config)),
        )

    def saw(self, trial: Trial, step: int, value: float) -> None:
        """The searcher is told a metric value of a run that goes on."""
        self.append("read", phase=trial.phase, run=trial.name, step=step, value=_json(value), final=False)

    def end(self, trial: Trial, status: str, reason: str = "") -> None:
        """A run ended: `finished`, `stopped` (by the scheduler) or `failed`."""
        files = {name: file_hash(trial.folder(self.folder) / name) for name in RESULT_FILES}
        self.append("end", phase=trial.phase, run=trial.name, status=status, reason=reason, files=files)

    def read(self, phase: int, run: str, measure: Callable[[Evaluations], float]) -> float:
        """The final metric of a run. There is no other way to it: the look is recorded before the value is returned.

        A run is looked at once; afterwards the recorded value is returned.
        """
        seen = [entry for entry in self.find("read", phase, run) if entry["final"]]
        if not seen:
            step, value = final_metric(self.folder / PHASE_FOLDERS[phase] / run, measure)
            self.append("read", phase=phase, run=run, step=step, value=_json(value), final=True)
            seen = self.entries[-1:]
        return _number(seen[0]["value"])

    def rank(self, phase: int, measure: Callable[[Evaluations], float], mode: str) -> list[Standing]:
        """Read the final metric of every finished run of a phase; the candidates, best first."""
        for entry in self.find("start", phase):
            if self.status(phase, entry["run"]) == "finished":
                self.read(phase, entry["run"], measure)
        return standings(self.entries, phase, mode)

    def freeze(self, content: Mapping[str, Any]) -> None:
        """Write `frozen.json` and its hash: from here on nothing is chosen any more."""
        path = self.folder / "frozen.json"
        write_json(path, content)
        self.append("freeze", sha256=file_hash(path))

    def frozen(self) -> dict[str, Any]:
        """What was frozen: group -> its parameters and its runs.

        Raises:
            LedgerError: frozen.json is not the file that was frozen.
        """
        path, (freeze, *_) = self.folder / "frozen.json", self.find("freeze")
        if file_hash(path) != freeze["sha256"]:
            raise LedgerError(f"{path} is not the file that was frozen")
        groups: dict[str, Any] = read_json(path, FROZEN, LedgerError)["groups"]
        return groups

    def status(self, phase: int, run: str) -> str | None:
        """`finished`, `stopped` or `failed`; `running` after a start without an end, None before it."""
        return run_status(self.entries, phase, run)


def final_metric(folder: Path, measure: Callable[[Evaluations], float]) -> tuple[int, float]:
    """(last environment step, metric) of a run, over the tasks that it was trained on."""
    evaluations = Evaluations.load(folder / "evaluation.npz")
    segments = load_summary(folder)["segments"]
    trained = trained_tasks([segment["task"] for segment in segments], len(evaluations.tasks))
    return evaluations.steps[-1], measure(evaluations.only(trained))


def trained_tasks(segments: Iterable[int | None], count: int) -> list[int]:
    """Indices of the tasks that the segments train on (None: all of the `count` tasks)."""
    tasks = set(segments)
    return list(range(count)) if None in tasks else sorted(task for task in tasks if task is not None)


def read_entries(path: Path) -> list[Entry]:
    """The entries of a ledger.

    Raises:
        LedgerError: there is none, or a line is not, byte for byte, what is written for an entry.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LedgerError(f"{path.parent} holds no sweep: it has no {path.name}") from error
    entries: list[Entry] = [parse_json(line, path, ENTRY, LedgerError) for line in lines]
    for entry, line in zip(entries, lines, strict=True):
        if _line(entry) != line or entry["event"] not in SHAPES or entry.get("phase") not in (None, *PHASE_FOLDERS):
            raise LedgerError(f"{path} is damaged: line {entry['index'] + 1} is not as it was written")
        check_shape(entry, path, SHAPES[entry["event"]], LedgerError)
    if rest:
        raise LedgerError(f"{path} is damaged: its last line has no end")
    return entries


def _line(entry: Entry) -> bytes:
    """An entry as it stands in the file."""
    return json.dumps(entry).encode()


def run_status(entries: Iterable[Entry], phase: int, run: str) -> str | None:
    """See `Ledger.status`."""
    status = None
    for entry in entries:
        if entry.get("phase") == phase and entry.get("run") == run:
            if entry["event"] in ("start", "resume"):
                status = "running"
            elif entry["event"] == "end":
                status = str(entry["status"])
    return status


# ---- results -------------------------------------------------------------------------------------------------------


@dataclass
class Standing:
    """A candidate and what its runs reached.

    Args:
        group: the variant.
        parameters: dotted key -> value.
        values: seed -> final metric of the runs that finished.
        unfinished: runs that failed or were stopped early.
    """

    group: str
    parameters: dict[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    unfinished: int = 0

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        return fmean(self.values.values()) if self.values else math.nan

    @property
    def standard_error(self) -> float:
        """Standard deviation over the square root of the number of seeds; NaN for fewer than two."""
        return stdev(self.values.values()) / len(self.values) ** 0.5 if len(self.values) > 1 else math.nan


def standings(entries: Iterable[Entry], phase: int, mode: str) -> list[Standing]:
    """The candidates of a phase, best first, from what the ledger says was started and read.

    A candidate whose runs were stopped early or failed stands below one with more runs that came to the end.
    """
    found: dict[str, Standing] = {}
    seeds: dict[str, tuple[Standing, int]] = {}
    entries = [entry for entry in entries if entry.get("phase") == phase]
    for entry in entries:
        if entry["event"] == "start":
            key = digest([entry["group"], entry["parameters"]])
            candidate = found.setdefault(key, Standing(entry["group"], entry["parameters"]))
            seeds[entry["run"]] = (candidate, entry["seed"])
        elif entry["event"] == "read" and entry["final"] and entry["run"] in seeds:
            candidate, seed = seeds[entry["run"]]
            candidate.values[seed] = _number(entry["value"])
    for run, (candidate, _) in seeds.items():
        candidate.unfinished += run_status(entries, phase, run) != "finished"
    sign = -1 if mode == "max" else 1

    def order(s: Standing) -> tuple[int, float]:
        undefined = any(math.isnan(value) for value in s.values.values())
        return (0, math.inf) if undefined or not s.values else (-len(s.values), sign * s.mean)

    return sorted(found.values(), key=order)


def best(ranking: Iterable[Standing], group: str) -> Standing | None:
    """The first candidate of a group with a defined metric."""
    return next((s for s in ranking if s.group == group and not math.isnan(s.mean)), None)


# ---- verification ----------------------------------------------------------------------------------------------------


def verify(folder: Path) -> list[Entry]:
    """The entries of the sweep in `folder`, if its ledger holds.

    Raises:
        LedgerError: the first violation, as a sentence.
    """
    entries = read_entries(folder / "ledger.jsonl")
    for problem in violations(folder, entries):
        raise LedgerError(f"the ledger of {folder} does not hold: {problem}")
    return entries


def violations(folder: Path, entries: list[Entry]) -> Iterator[str]:
    """Everything that is wrong with a ledger and the files beside it, as sentences."""
    broken = list(_chain(entries))
    yield from broken
    if broken or not entries or entries[0]["event"] != "begin":
        if not broken:
            yield "its first entry is not the beginning of a sweep"
        return
    yield from _head(folder, entries)
    if entries[0]["protocol"] != "plain":
        yield from _order(entries)
        yield from _once(entries)
        yield from _overlap(entries)
        yield from _frozen(folder, entries)
    yield from _results(folder, entries)


def _chain(entries: list[Entry]) -> Iterator[str]:
    """Every entry is whole, and names the one before it."""
    previous = START
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or entry.get("hash") != entry_hash(entry):
            yield f"entry {index} was changed after it was written"
            return
        if entry["previous"] != previous or entry["index"] != index:
            yield f"an entry is missing before entry {index}"
            return
        previous = entry["hash"]


def _head(folder: Path, entries: list[Entry]) -> Iterator[str]:
    """The result was made from this ledger; entries cut off at its end would be missed otherwise."""
    path = folder / "sweep.json"
    if path.exists():
        recorded = read_json(path, {"ledger": {"entries": int, "head": str}}, LedgerError)["ledger"]
        heads = [START, *(entry["hash"] for entry in entries)]
        if recorded["head"] not in heads[recorded["entries"] : recorded["entries"] + 1]:
            yield f"sweep.json was made from {recorded['entries']} entries, which are not the ones that are here"


def _results(folder: Path, entries: list[Entry]) -> Iterator[str]:
    """The files of the runs are those that were there when the runs ended."""
    for entry in entries:
        if entry["event"] == "end" and entry["status"] == "finished":
            for name, recorded in entry["files"].items():
                if file_hash(folder / PHASE_FOLDERS[entry["phase"]] / entry["run"] / name) != recorded:
                    yield f"{name} of run {entry['run']} is not the file that the run ended with"


def _order(entries: list[Entry]) -> Iterator[str]:
    """First the tuning, then one freeze, then the evaluation."""
    freezes = [entry["index"] for entry in entries if entry["event"] == "freeze"]
    if len(freezes) > 1:
        yield f"the choice was frozen {len(freezes)} times"
    frozen = freezes[0] if freezes else math.inf
    for entry in entries:
        if entry.get("phase") == EVALUATION and entry["index"] < frozen:
            what = "a metric was read" if entry["event"] == "read" else f"the entry is {entry['event']!r}"
            yield f"entry {entry['index']}: run {entry['run']} of phase two before the choice was frozen: {what}"
        elif entry.get("phase") == TUNING and entry["event"] in ("start", "resume") and entry["index"] > frozen:
            yield f"entry {entry['index']}: run {entry['run']} of phase one after the choice was frozen"


def _once(entries: list[Entry]) -> Iterator[str]:
    """Every run of phase two starts once and ends once; in between it may be interrupted and go on."""
    state: dict[str, str] = {}
    for entry in entries:
        if entry.get("phase") != EVALUATION:
            continue
        run, event = entry["run"], entry["event"]
        before = state.get(run, "new")
        if event == "start" and before != "new":
            yield f"entry {entry['index']}: run {run} of phase two was started again"
        elif event == "resume" and before == "finished":
            yield f"entry {entry['index']}: run {run} of phase two went on after its end"
        elif event == "read" and before != "finished":
            yield f"entry {entry['index']}: a metric of run {run} of phase two was read before its end"
        if event in ("start", "resume"):
            state[run] = "running"
        elif event == "end":
            state[run] = entry["status"]


def _overlap(entries: list[Entry]) -> Iterator[str]:
    """The phases have no seed in common, and under two_phase no task."""
    starts = [entry for entry in entries if entry["event"] == "start"]
    seeds = [{entry["seed"] for entry in starts if entry["phase"] == phase} for phase in (TUNING, EVALUATION)]
    if seeds[0] & seeds[1]:
        yield f"seeds {sorted(seeds[0] & seeds[1])} were used by both phases"
    data = [{task for e in starts if e["phase"] == phase for task in e["data"]} for phase in (TUNING, EVALUATION)]
    if entries[0]["protocol"] == "two_phase" and data[0] & data[1]:
        yield f"a task was used by both phases: {min(data[0] & data[1])}"


def _frozen(folder: Path, entries: list[Entry]) -> Iterator[str]:
    """frozen.json is what was frozen, it is what the tuning showed to be best, and it is what was evaluated."""
    freeze = next((entry for entry in entries if entry["event"] == "freeze"), None)
    if freeze is None:
        return
    if file_hash(folder / "frozen.json") != freeze["sha256"]:
        yield "frozen.json is not the file that was frozen"
        return
    frozen = read_json(folder / "frozen.json", FROZEN, LedgerError)["groups"]
    ranking = standings(entries[: freeze["index"]], TUNING, entries[0]["mode"])
    for group, choice in frozen.items():
        first = best(ranking, group)
        if first is None or first.parameters != choice["parameters"]:
            yield f"the frozen parameters of group {group} are not the best of phase one"
    expected = {run: sha for choice in frozen.values() for run, sha in choice["runs"].items()}
    for entry in entries:
        if entry["event"] == "start" and entry["phase"] == EVALUATION:
            path = folder / PHASE_FOLDERS[EVALUATION] / entry["run"] / "config.yaml"
            try:
                on_disk = digest(configs.to_dict(configs.load(str(path)))) if path.is_file() else entry["config"]
            except ConfigError:  # damaged
                on_disk = None
            if not expected.get(entry["run"]) == entry["config"] == on_disk:
                yield f"run {entry['run']} of phase two did not have the frozen config"


def _json(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
