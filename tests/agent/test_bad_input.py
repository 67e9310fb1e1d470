"""Every mistake a user can make gets one sentence that names the cause, the right exit code, and harms nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lifelong.agent import cli

SMALL = """
stream:
  steps_per_task: 512
  tasks:
    - {name: left, env: {kind: TMaze, corridor: 3}}
    - {name: right, env: {kind: TMaze, corridor: 3, reversed: 1}}
policy: {encoder: identity, cell: {kind: elstm, size: 4}}
gradient: rtrl
rollout: {copies: 4, steps: 8}
evaluation: {every: 512, episodes: 2, max_steps: 16}
checkpoint: {every: 128}
log_every: 256
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(SMALL)
    assert cli.main(["run", str(folder / "small.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


# what is typed after `lifelong`, and words that the sentence must contain
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "unknown config": (["run", "quikstart"], ["quikstart", "quickstart"]),
    "unknown command": (["rum", "quickstart"], ["rum", "run"]),
    "missing config file": (["run", "nowhere/none.yaml"], ["nowhere/none.yaml"]),
    "unknown option": (["run", "quickstart", "--resum"], ["--resum"]),
    "no config": (["run"], ["CONFIG"]),
    "override without value": (["run", "quickstart", "seed"], ["seed", "key=value"]),
    "override with bad YAML": (["run", "quickstart", "seed=[1"], ["seed", "YAML"]),
    "unknown kind to list": (["list", "strateg"], ["strateg", "strategy"]),
    "unknown benchmark": (["bench", "kernel"], ["kernel", "kernels"]),
    "resume of no run": (["resume", "nowhere"], ["nowhere", "config.yaml"]),
    "eval of no run": (["eval", "nowhere"], ["nowhere", "config.yaml"]),
    "report of no folder": (["report", "nowhere"], ["nowhere"]),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_wrong_command_is_answered_with_one_sentence(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = COMMANDS[case]
    assert cli.main(arguments) == 2
    assert_one_sentence(capsys, words)


# overrides of a config that works, and words that the sentence must contain
OVERRIDES: dict[str, tuple[list[str], list[str]]] = {
    "unknown top key": (["polycy.cell=gru"], ["polycy", "policy"]),
    "unknown nested key": (["rollout.copys=8"], ["rollout", "copys", "copies"]),
    "wrong type": (["rollout.copies=many"], ["rollout.copies", "many", "integer"]),
    "not a boolean": (["evaluation.deterministic=3"], ["evaluation.deterministic", "3", "true or false"]),
    "negative size": (["rollout.steps=-1"], ["rollout.steps", "-1", "at least 1"]),
    "negative cell size": (["policy.cell.size=-4"], ["elstm", "size", "-4"]),
    "wrong choice": (["stream.boundaries=gven"], ["stream.boundaries", "gven", "given"]),
    "unknown env": (["stream.tasks.0.env=TMase"], ["TMase", "TMaze"]),
    "unknown env parameter": (["stream.tasks.0.env.coridor=3"], ["coridor", "corridor"]),
    "env parameter out of range": (["stream.tasks.1.env.corridor=-2"], ["corridor", "-2", "right"]),
    "task name twice": (["stream.tasks.1.name=left"], ["left", "twice"]),
    "no tasks": (["stream.tasks=[]"], ["stream.tasks", "empty"]),
    "index beyond the list": (["stream.tasks.7.steps=3"], ["stream.tasks.7.steps", "7"]),
    "unknown strategy": (["strategy=gmp"], ["gmp", "gpm"]),
    "unknown strategy option": (["strategy=ewc", "strategy.0.strenght=3"], ["ewc", "strenght", "strength"]),
    "strategy option of wrong type": (["strategy={kind: ewc, strength: big}"], ["ewc", "strength", "big"]),
    "rtrl with lstm": (["policy.cell=lstm"], ["rtrl", "lstm", "bptt", "elstm"]),
    "unknown type of the carry": (["gradient={kind: rtrl, carry_dtype: bf16}"], ["carry_dtype", "bf16", "bfloat16"]),
    "strategy twice": (["strategy=[ewc, gpm, ewc]"], ["ewc", "twice"]),
    "strategy without boundaries": (["strategy=gpm", "stream.boundaries=hidden"], ["gpm", "boundaries", "hidden"]),
    "replay without correction": (["strategy=clear", "objective=ppo"], ["clear", "ppo", "actor_critic"]),
    "supervised without targets": (["objective=supervised"], ["supervised", "target"]),
    "heads without task id": (["policy.heads=per_task"], ["per_task", "task_id", "observed"]),
    "different spaces": (["stream.tasks.1.env={kind: CartPole}"], ["left", "right", "pad"]),
    "too many minibatches": (["objective={kind: ppo, minibatches: 9}"], ["minibatches", "9", "4"]),
    "own part that is not there": (["policy.cell=no_such_module:Cell"], ["no_such_module"]),
    "own part that is no class": (["policy.cell=json:dumps"], ["json:dumps", "function"]),
    "own env that is none": (["stream.tasks.0.env=json:JSONDecoder"], ["json:JSONDecoder", "BatchedEnv"]),
    "drift over two environments": (
        ["stream.schedule=drift", "stream.spaces=pad", "stream.tasks.1.env={kind: CartPole}"],
        ["drift"],
    ),
    "cuda without a GPU": (["runtime.device=cuda"], ["runtime.device", "cuda"]),
    "burn-in beyond the chunk": (["strategy={kind: clear, burn_in: 8}"], ["clear", "burn_in", "8"]),
    "cnn on a vector": (["policy.encoder=cnn"], ["cnn", "mlp"]),
    "runners inline": (["runtime.env_runners=2"], ["runtime.env_runners", "2", "runtime.backend=ray"]),
    "runners that cannot share": (
        ["runtime.backend=ray", "runtime.env_runners=3"],
        ["rollout.copies", "4", "3 runtime.env_runners", "use 3"],
    ),
    "runners of two learners": (
        ["runtime.backend=ray", "runtime.env_runners=2", "runtime.workers=2"],
        ["runtime.env_runners", "runtime.workers", "one learner"],
    ),
    "runners for ppo": (
        ["runtime.backend=ray", "runtime.env_runners=2", "objective=ppo"],
        ["runtime.env_runners", "ppo", "actor_critic"],
    ),
    "part of two CPUs": (["runtime.cpus_per_runner=1.5"], ["runtime.cpus_per_runner", "1.5", "integer"]),
    "unknown optimizer option": (["optimizer.learning_rate=1"], ["learning_rate", "adam"]),
    "optimizer option of the runtime": (["optimizer={kind: rmsprop, capturable: true}"], ["rmsprop", "capturable"]),
    "name of many bytes": (["name=" + "\u8a00" * 99], ["name", "100 printable characters (200 bytes)"]),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_wrong_config_is_refused_before_anything_is_written(
    case: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, words = OVERRIDES[case]
    if case == "cuda without a GPU":
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    assert cli.main(["run", str(small), "--out", str(tmp_path / "run"), *overrides]) == 2
    assert_one_sentence(capsys, words)
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_no_mapping_or_no_yaml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, word in (("- a\n- b\n", "mapping"), ("stream: [1\n", "YAML"), ("include: [loop.yaml]\n", "circle")):
        (tmp_path / "loop.yaml").write_text(text)
        assert cli.main(["run", str(tmp_path / "loop.yaml")]) == 2
        assert_one_sentence(capsys, ["loop.yaml", word])


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    assert cli.main(["run", str(finished.parent / "small.yaml"), "--out", str(finished)]) == 2
    assert_one_sentence(capsys, ["already holds a run", "resume"])
    assert contents(finished) == before


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    newest = sorted((run / "checkpoints").iterdir())[-1] / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    (run / "summary.json").unlink()
    assert cli.main(["resume", str(run), "--quiet"]) == 0
    assert "damaged" in capsys.readouterr().out
    assert (
        json.loads((run / "summary.json").read_text())["tasks"]
        == json.loads((finished / "summary.json").read_text())["tasks"]
    )


def test_only_damaged_checkpoints_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    for state in run.glob("checkpoints/*/state.pt"):
        state.write_bytes(state.read_bytes()[:1000])
    before = contents(run)
    assert cli.main(["resume", str(run)]) == 2
    assert_one_sentence(capsys, ["no usable checkpoint", "bytes"])
    assert contents(run) == before


def test_an_override_that_a_trained_run_cannot_take_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = contents(run)
    assert cli.main(["resume", str(run), "policy.cell.size=5"]) == 2
    assert_one_sentence(capsys, ["policy.cell.size", "5", "4"])
    assert contents(run) == before


def test_a_folder_that_cannot_be_written_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("/proc/lifelong", "/dev/null/run"):  # refused to root, too
        assert cli.main(["run", str(small), "--out", folder]) == 1
        assert_one_sentence(capsys, [folder])


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_the_last_checkpoint(small: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 30 kB: the log fits, a checkpoint does not."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    run = tmp_path / "run"
    arguments = [sys.executable, "-m", "lifelong.agent.cli", "run", str(small), "--out", str(run), "--quiet"]
    big = [*arguments, "policy.cell.size=64"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(big, preexec_fn=limit, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("lifelong: ")]
    assert len(sentences) == 1 and str(run) in sentences[0] and "Traceback" not in done.stderr
    assert not list(run.glob("checkpoints/.partial*"))
    # with room again, the same command goes on
    assert subprocess.run([*big, "--resume"], capture_output=True, env=environment, check=False).returncode == 0


#: a file of a run, what it holds after it was damaged, and words of the sentence
DAMAGED: dict[str, tuple[str, bytes, list[str]]] = {
    "the record of changes": ("changes.jsonl", b'{"step": 1}\n', ["changes.jsonl", "damaged", "kind"]),
    "changes that are no text": ("changes.jsonl", b"\xff\n", ["changes.jsonl", "damaged"]),
    "evaluations": ("evaluation.jsonl", b"x" * 10_000, ["checkpoint", "evaluation"]),
    "evaluations of another shape": ("evaluation.jsonl", b'{"step": 1}\n' * 500, ["evaluation.jsonl"]),
    "the config": ("config.yaml", b"stream: []\n", ["stream"]),
    "a config that is no text": ("config.yaml", b"\xff", ["config.yaml", "UTF-8"]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_run_with_a_damaged_file_is_refused_before_anything_is_written(
    case: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    name, damage, words = DAMAGED[case]
    (run / name).write_bytes(damage)
    (tmp_path / "task.yaml").write_text("{name: new, env: {kind: TMaze, corridor: 4}}")
    before = contents(run)
    for changes in (["optimizer.lr=0.5"], ["--add", str(tmp_path / "task.yaml")]):
        assert cli.main(["resume", str(run), "--quiet", *changes]) == 2
        assert_one_sentence(capsys, words)
        assert contents(run) == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"config": 1}', b"\xff"])
def test_a_damaged_summary_is_written_again(damage: bytes, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "summary.json").write_bytes(damage)
    assert cli.main(["resume", str(run), "--quiet"]) == 0
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, finished))
    assert {**ours, "steps_per_second": 0} == {**theirs, "steps_per_second": 0}


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"files": []}', b'{"step": "x", "workers": 1, "files": {}}', b"\xff"])
def test_a_checkpoint_with_a_damaged_manifest_falls_back_to_the_one_before(
    damage: bytes, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    newest = sorted((run / "checkpoints").iterdir())[-1] / "manifest.json"
    newest.write_bytes(damage)
    assert cli.main(["resume", str(run), "--quiet"]) == 0
    assert "manifest.json is damaged" in capsys.readouterr().out


def test_a_report_on_a_full_disk_names_the_file_and_keeps_the_old_one(finished: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 10 kB: a plot is larger."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-m", "lifelong.agent.cli", "report", str(finished), "--out", str(tmp_path / "page")]
    (tmp_path / "page").mkdir()
    (tmp_path / "page/report.html").write_text("old")
    done = subprocess.run(arguments, preexec_fn=limit, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("lifelong: cannot write ") and ".png: File too large" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {p.name: p.read_bytes() for p in (tmp_path / "page").rglob("*.*")} == {"report.html": b"old"}


def test_only_a_standard_output_that_refuses_is_called_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "lifelong.agent.cli", "list", "cell"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "lifelong: No space left on device: standard output\n")

    def broken(_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cli, "_silence", lambda: None)
    monkeypatch.setitem(cli.COMMANDS, "list", broken)
    assert cli.main(["list"]) == 1
    assert capsys.readouterr().err == "lifelong: Input/output error\n"


def assert_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    error = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(error) == 1, error
    assert error[0].startswith("lifelong: ")
    assert "Traceback" not in error[0]
    for word in words:
        assert word in error[0], f"{word!r} is not in {error[0]!r}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
