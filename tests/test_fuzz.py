"""Hostile configs, options, files, run folders and sweeps: one short sentence at once, and nothing left behind.

Slow: `make fuzz`. Everything goes through the command line's `main`, in this process; training is cut to two chunks.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from lifelong.agent import config as configs
from lifelong.agent import run as commands
from lifelong.agent.cli import main
from lifelong.agent.errors import ClusterError
from lifelong.agent.registry import REGISTRY
from lifelong.agent.runtime import changes
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.schema import options as options_of
from lifelong.agent.sweep import plan as sweep_plan
from lifelong.agent.sweep import report as sweep_report
from lifelong.agent.sweep import trials
from lifelong.agent.sweep.ledger import Ledger
from lifelong.agent.sweep.plan import TUNING, SweepConfig, Trial
from tests.agent.sweep.test_sweep import write_sweep

pytestmark = pytest.mark.slow

#: characters of a sentence; seconds until it is there
LONGEST, PATIENCE = 300, 20

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, 10**6, 0.5, 10**9, 1e-320, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "x" * 5000, "a\x1b[31mb", "../../x", "\u202e", "\u8a00" * 99,
    [], [[]], {}, {"kind": "nothing"}, {1: 2},
]  # fmt: skip
OF_OPTIONS: list[Any] = [
    None, True, 0, -1, 2**63, 10**9, float("nan"), float("inf"), 1e308, "", "x" * 5000, [], {}, {"a": 1},
]  # fmt: skip
OF_RESUME: list[Any] = [None, True, 0, 1, 0.5, 10**9, float("nan"), "", "x" * 5000, [], {"kind": "nothing"}]

TINY: dict[str, Any] = {
    "name": "tiny",
    "stream": {
        "steps_per_task": 128,
        "tasks": [
            {"name": "a", "env": {"kind": "CartPole"}},
            {"name": "b", "env": {"kind": "CartPole", "gravity": 5.0}},
        ],
    },
    "policy": {"cell": {"kind": "elstm", "size": 4}, "encoder": {"kind": "mlp", "hidden": [4]}},
    "gradient": {"kind": "rtrl"},
    "objective": {"kind": "actor_critic"},
    "optimizer": {"kind": "adam", "lr": 1e-3},
    "strategy": [{"kind": "ewc", "sequences": 8}],
    "rollout": {"copies": 4, "steps": 4},
    "evaluation": {"episodes": 2, "max_steps": 5},
}
#: where a part of each kind stands
WHERE = {
    "env": "stream.tasks.0.env",
    "schedule": "stream.schedule",
    "encoder": "policy.encoder",
    "cell": "policy.cell",
    "strategy": "strategy.0",
}
#: what a part needs besides the option in question
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("env", "gymnasium"): {"id": "CartPole-v1"},
    ("env", "envpool"): {"id": "MiniGrid-MemoryS7-v0"},
}


class Hang(BaseException):
    """Something took too long; whoever catches all errors does not catch this one."""


@pytest.fixture(autouse=True)
def two_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every training has one chunk in its first segment and one after it; the working folder is empty."""
    whole = Trainer.advance

    def advance(self: Trainer) -> Any:
        experience = whole(self)
        end = self.stream.trained_until(0)
        self.step = max(self.step, end if self.step < end else self.stream.total_steps)
        return experience

    monkeypatch.setattr(Trainer, "advance", advance)
    monkeypatch.chdir(tmp_path)


#: runs a command line; returns (exit code, what it said on standard error)
Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """A command line that keeps what holds of every one."""

    def stop(*_: Any) -> None:
        raise Hang

    def run(*words: Any) -> tuple[int, str]:
        shown = [str(word)[:80] for word in words]
        signal.alarm(PATIENCE)
        begun = time.monotonic()
        try:
            code = main([str(word) for word in words])
        except BaseException as error:
            raise AssertionError(f"{shown} raised {type(error).__name__}: {str(error)[:200]}") from error
        finally:
            signal.alarm(0)
        out, told = capfd.readouterr()
        assert "Traceback" not in told + out, shown
        assert time.monotonic() - begun < PATIENCE
        if code:
            lines = [line for line in told.splitlines() if line.startswith("lifelong: ")]
            assert len(lines) == 1, (shown, told)
            assert len(lines[0]) <= LONGEST, (shown, lines[0])
            assert lines[0].isprintable(), lines[0]
        return code, told

    old = signal.signal(signal.SIGALRM, stop)
    yield run
    signal.signal(signal.SIGALRM, old)


def start(say: Say, raw: dict[str, Any]) -> None:
    """Start a run of a raw config. It is trained, refused before there is a folder, or blows up and says so."""
    shutil.rmtree("runs", ignore_errors=True)
    Path("hostile.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True))
    code, told = say("run", "hostile.yaml", "--quiet")
    assert code in (0, 2) or "not finite" in told, told
    if code == 2:
        assert not Path("runs").exists(), told


def with_value(key: str, value: Any, base: dict[str, Any] = TINY) -> dict[str, Any]:
    """The small config, or another, with `value` at a dotted key."""
    raw: Any = copy.deepcopy(base)
    *steps, last = (int(step) if step.isdecimal() else step for step in key.split("."))
    place = raw
    for step in steps:
        place = place[step] if isinstance(place, list) else place.setdefault(step, {})
    place[last] = value
    return raw


def keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key of the schema, dotted."""
    hints = get_type_hints(schema)
    for spec in dataclasses.fields(schema):
        key, hint = prefix + spec.name, hints[spec.name]
        yield key
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, key + ".")  # type: ignore[arg-type]
        elif get_origin(hint) is list and dataclasses.is_dataclass(get_args(hint)[0]):
            yield from keys(get_args(hint)[0], key + ".0.")


# ---- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", list(keys(configs.Config)))
def test_every_key_survives_every_value(key: str, say: Say) -> None:
    assert len(HOSTILE) == 32
    for value in HOSTILE:
        start(say, with_value(key, value))


@pytest.mark.parametrize("address", [value for value in HOSTILE if isinstance(value, str) and value])
def test_no_address_of_a_cluster_surprises(address: str, say: Say) -> None:
    start(say, {**TINY, "runtime": {"backend": "ray", "address": address}})


PARTS = [(kind, name) for kind, names in REGISTRY.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=str)
def test_every_option_of_every_part_survives_every_value(kind: str, name: str, say: Say) -> None:
    assert len(OF_OPTIONS) == 14
    if name == "envpool":
        pytest.importorskip("envpool")
    for option in [*options_of(kind, name), "no_such_option"]:
        for value in OF_OPTIONS:
            part = {"kind": name, **NEEDS.get((kind, name), {}), option: value}
            raw = with_value(WHERE.get(kind, kind), part)
            if kind == "cell" and name in ("gru", "lstm"):
                raw["gradient"] = "bptt"
            if name == "supervised":
                raw["stream"] = {"steps_per_task": 256, "tasks": [{"env": {"kind": "ImageRows"}}]}
            start(say, raw)


def text_of(value: Any) -> str:
    """A value as it is typed behind `key=`."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**9).strip()[1:-1]


# ---- files -----------------------------------------------------------------------------------------------------------


def yaml_files() -> list[bytes]:
    """Ninety files that are no config, or look like one."""
    good = yaml.safe_dump(TINY).encode()
    draw = random.Random(0)
    files = [
        b"", b"\n", b"~", b"[]", b"1", b"'x'", b"- a", b"{", b"}", b"a: b: c", b"\t", b"a:\n\tb: 1",
        b"%YAML 9.9\n---\na: 1",
        b"---\na: 1\n---\nb: 2", b"a: &x [*x]", b"a: *x", b"!!python/object/apply:os.system ['true']", b"!!binary x",
        b"!x y", b"? [a]\n: b", b"1: 2", b"null: 1", b"true: 1", b"a: 1\na: 2", b"name: x\nname: y", b"<<: 1",
        b"<<: {a: 1}",
        b"include: hostile.yaml", b"include: [1]", b"include: {a: 1}", b"include: null",
        b"include: ../../../etc/passwd",
        b"include: " + b"x" * 5000, b"include: [" + b"quickstart, " * 2000 + b"quickstart]", b"\xff\xfe\x00", b"\x00",
        "name: é\n".encode("latin-1"), good.decode().encode("utf-16"), b"\xef\xbb\xbf" + good, b"a: " + b"[" * 3000,
        b"a: " + b"{b: " * 900, b"x: " + b"9" * 10000, b"x: 1e999999", b"x: 0x" + b"f" * 9000, b"x: 2024-13-45",
        b"x: 12:30:45", b"name: |\n" + b"  a\n" * 20000, b"name: \"\\x1b[2J\"", b"name: ../up", b"name: a/b",
        b"name: .",
        b"name: .\x2e", b"name: " + b"n" * 101, b"name: '$x_{'", b"seed: 1_0", b"seed: 010", b"seed: 1.0", b"seed: 1e3",
        b"stream: []", b"stream: {tasks: {}}", b"stream: {tasks: [1]}", b"stream: {tasks: [{}]}", b"strategy: {}",
        b"strategy: []", b"strategy: [[]]", b"strategy: {kind: [ewc]}", b"strategy: {kind: 'os:system'}",
        b"strategy: {kind: 'timeit:Timer', setup: 'import os'}", b"optimizer: {kind: 'tarfile:TarFile', name: x}",
        b"policy: {cell: {kind: 'no.such.module:X'}}", b"policy: {cell: {kind: ':'}}", b"policy: {cell: {kind: 'a:'}}",
    ]  # fmt: skip
    bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(8)
    )
    files.append(bomb)
    while len(files) < 90:
        broken = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        files.append(bytes(broken))
    return files


@pytest.mark.parametrize("number", range(90))
def test_every_file_is_read_or_refused(number: int, say: Say) -> None:
    Path("hostile.yaml").write_bytes(yaml_files()[number])
    for command in (["show", "hostile.yaml"], ["run", "hostile.yaml", "--quiet"]):
        code, told = say(*command)
        assert code in (0, 2), told
        if code == 2:
            assert not Path("runs").exists(), told


# ---- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two checkpoints, which was changed on its way."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "checkpoint": {"every": 64}, "log_every": 32}))
    assert main(["run", str(folder / "tiny.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    run = stopped(folder / "run")
    assert main(["resume", str(run), "--quiet", "optimizer.lr=1e-4", "strategy.0.strength=2"]) == 0
    return run


def stopped(run: Path) -> Path:
    """The run without its last checkpoint, as if it had been killed."""
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    (run / "summary.json").unlink()
    return run


def damage(folder: Path, draw: random.Random, pattern: str = "*") -> set[str]:
    """Hurt one to three files of this name; returns the names of those that hold what they did not."""
    before = contents(folder)
    for _ in range(draw.randint(1, 3)):
        files = sorted(path for path in folder.rglob(pattern) if path.is_file())
        if not files:
            break
        path = draw.choice(files)
        data = path.read_bytes()
        how = draw.choice(["delete", "empty", "cut", "flip", "grow", "folder", "zeros", "link"])
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "link":
            path.symlink_to("nowhere")
        elif how != "delete":
            flipped = bytearray(data)
            for _ in range(5 if flipped else 0):
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            changed = {"empty": b"", "cut": data[: len(data) // 2], "flip": bytes(flipped), "grow": data + b"\x00junk"}
            path.write_bytes(changed.get(how, bytes(len(data))))
    after = contents(folder)
    # what is behind the last line of a ledger was never an entry
    return {name for name, data in before.items() if not after.get(name, b"").startswith(data)}


def contents(folder: Path) -> dict[str, bytes]:
    """What is in the files of a folder; its lock comes and goes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("number", range(200))
def test_a_damaged_run_folder_is_resumed_or_refused(number: int, say: Say, whole_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole_run, tmp_path / "run")
    damage(run, random.Random(number))
    before = contents(run)
    change = ["optimizer.lr=0.5"] if number % 2 else []
    for command in (["eval", run], ["report", run, "--out", tmp_path / "page"], ["resume", run, "--quiet", *change]):
        code, told = say(*command)
        assert code != 2 or contents(run) == before, told


def keys_of_a_run() -> list[str]:
    """Every key of the schema, and every option of the parts of the small config."""
    found = list(keys(configs.Config))
    raw = configs.to_dict(configs.check(TINY))
    for kind in REGISTRY:
        where = WHERE.get(kind, kind)
        part: Any = raw
        for step in where.split("."):
            part = part[int(step) if step.isdecimal() else step]
        found += [f"{where}.{option}" for option in options_of(kind, part["kind"])]
    return found


@pytest.mark.parametrize("key", keys_of_a_run())
def test_a_change_of_a_trained_run_applies_or_is_refused_before_anything_is_written(
    key: str, say: Say, whole_run: Path, tmp_path: Path
) -> None:
    run, before = tmp_path / "run", {}
    for value in OF_RESUME:
        if contents(run) != before or not before:
            shutil.rmtree(run, ignore_errors=True)
            before = contents(stopped(shutil.copytree(whole_run, run)))
            old = configs.load(str(run / "config.yaml"))
        code, told = say("resume", run, "--quiet", f"{key}={text_of(value)}")
        assert code in (0, 2) or "not finite" in told, told
        if code == 2:
            assert contents(run) == before, told
        else:
            asked = {change.key for change in changes.between(old, configs.load(str(run / "config.yaml")))}
            assert asked <= {line["key"] for line in changes.read(run)}


@pytest.mark.parametrize("number", range(90))
def test_every_file_is_added_or_refused(number: int, say: Say, whole_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole_run, tmp_path / "run")
    before = contents(run)
    Path("hostile.yaml").write_bytes(yaml_files()[number])
    code, told = say("resume", run, "--quiet", "--add", "hostile.yaml")
    assert code in (0, 2), told
    if code == 2:
        assert contents(run) == before, told


# ---- sweeps ----------------------------------------------------------------------------------------------------------

SWEEP: dict[str, Any] = {"groups": {}, "seeds": [0], "overrides": {"stream.steps_per_task": 128}}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that would start Ray ends there."""

    def connect(*_: Any) -> Any:
        raise ClusterError("there is no Ray here")

    monkeypatch.setattr(trials, "connect", connect)


@pytest.mark.parametrize("key", list(keys(SweepConfig)))
def test_every_key_of_a_sweep_survives_every_value(key: str, say: Say, no_ray: None, tmp_path: Path) -> None:
    raw = yaml.safe_load(write_sweep(tmp_path, **SWEEP).read_text())
    for value in HOSTILE:
        Path("hostile.yaml").write_text(yaml.safe_dump(with_value(key, value, raw), allow_unicode=True))
        code, told = say("sweep", "hostile.yaml", "--quiet")
        assert code == 2 or "there is no Ray here" in told, told
        assert (code == 2) == (not Path("sweeps").exists()), told
        shutil.rmtree("sweeps", ignore_errors=True)


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two phases, run without Ray; its config lies beside it."""
    folder = tmp_path_factory.mktemp("sweep")
    config = write_sweep(folder, **SWEEP)
    plan = sweep_plan.load(str(config))
    ledger = Ledger(folder / "out")

    def do(trial: Trial) -> None:
        ledger.start(trial)
        commands.start(trial.config, trial.folder(ledger.folder), quiet=True)
        ledger.end(trial, "finished")

    ledger.begin(plan.to_dict(), "two_phase", plan.mode)
    for trial in plan.trials("tiny"):
        do(trial)
    trials.freeze(plan, ledger, ledger.rank(TUNING, plan.measure, plan.mode))
    for trial in trials.frozen_trials(plan, ledger):
        do(trial)
    sweep_report.write(plan, ledger)
    ledger.close()
    assert main(["sweep", str(config), "--out", str(folder / "out"), "--quiet"]) == 0
    return folder / "out"


@pytest.mark.parametrize("number", range(100))
def test_a_damaged_sweep_is_never_taken_for_a_whole_one(
    number: int, say: Say, no_ray: None, whole_sweep: Path, tmp_path: Path
) -> None:
    sweep = shutil.copytree(whole_sweep, tmp_path / "out")
    hurt = damage(sweep, random.Random(number), ["*", "ledger.jsonl", "frozen.json"][number % 3])
    proof = [name for name in hurt if Path(name).name in ("ledger.jsonl", "frozen.json", "evaluation.npz")]
    for command in (["verify", sweep], ["sweep", whole_sweep.parent / "small.yaml", "--out", sweep, "--quiet"]):
        code, told = say(*command)
        known = (0, 1, 2) if not proof else (1, 2) if "sweep.yaml" in hurt else (1,)
        assert code in known, (proof, told)
