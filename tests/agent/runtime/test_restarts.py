"""Runs over Gymnasium environments that fail: made anew, saved, closed, whatever ends the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lifelong
from lifelong.agent import config as configs
from lifelong.agent import run
from lifelong.agent.cli import main
from lifelong.agent.errors import CheckpointError, ConfigError, PartError
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.build import build
from lifelong.agent.strategies.base import Context, Source, Strategy
from tests.agent.support import make_trainer
from tests.envs.faulty import diary, reset_counts

ID = "tests.envs.faulty:faulty-v0"


class Consolidates(Strategy):
    """Looks at fresh episodes of every task that ended."""

    needs_boundaries = True

    def on_task_end(self, ctx: Context, source: Source) -> None:
        for _ in source(1):
            break


class Interrupts(Strategy):
    """Ctrl-C twice, in the middle of learning."""

    def after_update(self, ctx: Context) -> None:
        if ctx.step == 64:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def counts() -> Iterator[None]:
    reset_counts()
    yield


def env(**options: Any) -> dict[str, Any]:
    return {"kind": "gymnasium", "id": ID, **options}


def settings(env: dict[str, Any], restarts: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "name": "faulty",
        "stream": {"steps_per_task": 256, "tasks": [{"name": "t", "env": env}]},
        "rollout": {"copies": 4, "steps": 8},
        "policy": {"cell": {"kind": "elstm", "size": 6}},
        "gradient": {"kind": "rtrl"},
        "evaluation": {"every": 10**6, "episodes": 2, "max_steps": 20},
        "checkpoint": {"every": 64},
        "log_every": 32,
        "runtime": {"env_restarts": restarts},
        **changes,
    }


def start(folder: Path, raw: dict[str, Any]) -> Any:
    return run.start(configs.check(raw), folder, quiet=True)[0]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


#: calls of `step` in the first evaluation: 2 copies until both have ended, asked every 8 steps
EVALUATED = 16


def at(*steps: int) -> list[int]:
    """Calls of `step` in training, counted from 1 (4 calls a step)."""
    return [EVALUATED + step for step in steps]


# ---- made anew -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_run_goes_on_with_new_environments(
    vectorization: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = at(50, 200) if vectorization == "sync" else [30]  # each of 4 workers has a count of its own
    trainer = start(tmp_path / "run", settings(env(vectorization=vectorization, kwargs={"at": calls}), restarts=8))
    made = 2 if vectorization == "sync" else 4
    assert trainer.step == 256 and trainer.record.restarts.count == made
    counts = [line["env/restarts"] for line in lines(tmp_path / "run") if "env/restarts" in line]
    assert counts == sorted(counts) and counts[-1] == made
    assert "env/restarts" not in lines(tmp_path / "run")[1]
    told = [record.getMessage() for record in caplog.records if ", copy " in record.getMessage()]
    assert len(told) == made and told[0].startswith(f"task 't' (env {ID}), copy ")


def test_the_broken_episode_is_truncated_with_its_last_good_observation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **settings(env(kwargs={"at": [4 * 2 + 2]}), restarts=1))
    experience = trainer.rollout.collect(8)
    chunk = experience.chunk
    assert chunk.truncated.nonzero().tolist() == [[2, 1]]  # copy 1 in its third step
    assert chunk.reward[2].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert chunk.is_init[3].tolist() == [False, True, False, False]
    slot = int((chunk.final_step[:, 1] == 2).nonzero())
    assert torch.equal(chunk.final_obs[slot, 1], chunk.obs[2, 1])  # what the critic bootstraps from
    assert experience.done_TB[2].tolist() == [False, True, False, False]
    assert experience.episode_return_TB[2, 1] == 2.0


def test_when_none_is_left_the_last_chunk_is_saved_and_the_count_survives_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = settings(env(kwargs={"at": at(4, 90, 200)}), restarts=2)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    folder = tmp_path / "run"
    assert main(["run", str(tmp_path / "c.yaml"), "--out", str(folder), "--quiet"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "ValueError: three lines; what was learned until step 192 is saved" in told and len(told) <= 300
    saved, _ = checkpoint.load(folder / "checkpoints")
    assert saved["step"] == 192 and saved["record"]["restarts"] == 2
    reset_counts()
    words = ["resume", str(folder), "--quiet", "--trust"]
    assert main(words) == 1  # it breaks at once, and there are no restarts left
    assert "what was learned until step 192 is saved" in capsys.readouterr().err
    reset_counts()
    assert main([*words, "runtime.env_restarts=9"]) == 0
    assert lines(folder)[-2]["env/restarts"] == 3
    assert '"runtime.env_restarts"' in (folder / "changes.jsonl").read_text()


@pytest.mark.parametrize(
    ("spec", "changes", "sentence"),
    [
        (env(id="CartPole-v1", vectorization="vector_entry_point"), {}, "steps all copies in one call"),
        ({"kind": "CartPole"}, {}, "no task is a Gymnasium environment"),
        (env(), {"backend": "ray", "workers": 2}, r"runtime\.workers is 2, and restarts are counted in one process"),
        (env(), {"backend": "ray", "env_runners": 2}, r"runtime\.env_runners is 2, and restarts are counted in one"),
    ],
)
def test_restarts_that_cannot_be_are_refused_before_the_start(
    spec: dict[str, Any], changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    raw = settings(spec)
    raw["runtime"] = {"env_restarts": 3, **changes}
    with pytest.raises(ConfigError, match=rf"runtime\.env_restarts is 3, but .*{sentence}") as caught:
        start(tmp_path / "run", raw)
    assert len(str(caught.value)) <= 300 and not (tmp_path / "run").exists()


# ---- partial resets --------------------------------------------------------------------------------------------------

VECTOR = {"kind": "gymnasium", "id": "CartPole-v1", "vectorization": "vector_entry_point"}


@pytest.mark.parametrize(
    ("stream", "changes", "why"),
    [
        ({"schedule": "blurry"}, {}, "schedule blurry"),
        ({"schedule": "interleaved"}, {}, "schedule interleaved"),
        ({}, {"on_nonfinite": "skip"}, "on_nonfinite=skip"),
    ],
)
def test_a_vector_form_that_would_have_to_reset_some_copies_is_refused(
    stream: dict[str, Any], changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    raw = settings(VECTOR, **changes)
    raw["stream"] |= {"tasks": [{"name": "a", "env": VECTOR}, {"name": "b", "env": VECTOR}], **stream}
    with pytest.raises(
        ConfigError, match=rf"task 'a' \(env CartPole-v1\) cannot reset only some of its copies, .*{why}"
    ):
        start(tmp_path / "run", raw)
    for task in raw["stream"]["tasks"]:
        task["env"] = {**VECTOR, "vectorization": "sync", "autoreset": "next_step"}
    assert start(tmp_path / "run", raw).step == 512


@pytest.mark.parametrize("schedule", ["sequential", {"kind": "random", "every": 64}, "interleaved"])
def test_a_vector_form_goes_where_all_copies_change_together(schedule: Any, tmp_path: Path) -> None:
    """A second cycle too; interleaved, two environments have their own copies for good."""
    other = {**VECTOR, "kwargs": {"sutton_barto_reward": True}}
    raw = settings(VECTOR)
    raw["stream"] |= {
        "tasks": [{"name": "a", "env": VECTOR}, {"name": "b", "env": other}],
        "schedule": schedule,
        "cycles": 2,
    }
    assert start(tmp_path / "run", raw).step == 1024


# ---- saved -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["at", "resets"])
@pytest.mark.parametrize("fault", ["sys.exit", "OSError", "KeyError", "TypeError", "shape", "none"])
def test_an_error_leaves_the_last_finished_chunk_from_which_the_run_goes_on(
    fault: str, where: str, tmp_path: Path
) -> None:
    call = at(100) if where == "at" else [40]
    with pytest.raises(PartError) as caught:
        start(tmp_path / "run", settings(env(kwargs={"fault": fault, where: call})))
    told = str(caught.value)
    saved, _ = checkpoint.load(tmp_path / "run/checkpoints")
    assert "faulty.py:" in told and told.endswith(f"what was learned until step {saved['step']} is saved")
    assert "disk" not in told and 64 < saved["step"] < 256
    assert all(x.isfinite().all() for x in saved["policy"].values())
    reset_counts()
    config = settings(env(kwargs={"fault": fault, where: call}))
    config["runtime"]["env_restarts"] = 5
    trainer, finished = run.resume(tmp_path / "run", ["runtime.env_restarts=5"], quiet=True)
    assert finished and trainer.step == 256


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_under_wrappers_is_trained_on_and_told_of(
    vectorization: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FrameStackObservation, RecordEpisodeStatistics and TimeLimit, registered by the module that the id names."""
    wrapped = "tests.envs.faulty:faulty-wrapped-v0"
    assert start(tmp_path / "good", settings(env(id=wrapped, vectorization=vectorization))).step == 256
    assert lines(tmp_path / "good")[-1]["evaluation/t"] == 4.0  # the time limit
    reset_counts()
    call = 100 if vectorization == "sync" else 40  # of all copies, or of each
    bad = env(id=wrapped, vectorization=vectorization, kwargs={"fault": "OSError", "at": [call]})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings(bad)))
    assert main(["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "bad"), "--quiet"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and len(told[0]) <= 300 and "faulty.py:" in told[0]
    assert "OSError: [Errno 28] No space left on the licence server; what was learned until step" in told[0]


def test_an_evaluation_that_was_broken_off_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    """The last one: nothing else is left to do."""
    last = EVALUATED + 256 + 3
    with pytest.raises(PartError, match="what was learned until step 256 is saved"):
        start(tmp_path / "run", settings(env(kwargs={"at": [last]})))
    reset_counts()
    trainer, finished = run.resume(tmp_path / "run", quiet=True)
    assert finished and trainer.evaluations.steps == [0, 256]
    assert lines(tmp_path / "run")[-1]["evaluation/t"] == 5.0
    again, _ = run.resume(tmp_path / "run", quiet=True)
    assert again.evaluations.steps == [0, 256]


# ---- closed ----------------------------------------------------------------------------------------------------------


def assert_closed(book: Path, at_least: int) -> None:
    entries = diary(book)
    assert sorted(entries["made"]) == sorted(entries["closed"]) and len(entries["made"]) >= at_least


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("end", ["end", "error", "stop", "interrupt", "learning", "evaluated", "not resumed"])
def test_every_environment_is_closed_whatever_ends_the_run(
    end: str, vectorization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, folder = tmp_path / "diary", tmp_path / "run"
    calls = at(100) if end == "error" and vectorization == "sync" else [30] if end == "error" else []
    spec = env(vectorization=vectorization, kwargs={"at": calls, "diary": str(book)})
    raw = settings(spec, strategy=[{"kind": f"{__name__}:Consolidates"}])
    raw["stream"]["tasks"].append({"name": "u", "env": spec})
    if end == "interrupt":
        raw["strategy"] = [{"kind": f"{__name__}:Interrupts"}]
    config = configs.check(raw)
    if end == "error":
        with pytest.raises(PartError, match="three lines"):
            lifelong.run(config, folder, quiet=True)
    elif end == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            lifelong.run(config, folder, quiet=True)
    elif end == "learning":
        monkeypatch.setattr(Consolidates, "on_task_end", lambda *_: 1 / 0)
        with pytest.raises(PartError, match="division by zero"):
            lifelong.run(config, folder, quiet=True)
    elif end == "stop":
        stop = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        _, finished = lifelong.run(config, folder, quiet=True, on_evaluation=stop)
        assert not finished
    else:
        lifelong.run(config, folder, quiet=True)
    if end == "evaluated":
        run.evaluate(folder)
    if end == "not resumed":
        state = checkpoint.checkpoints(folder / "checkpoints")[-1] / "manifest.json"
        manifest = json.loads(state.read_text())
        manifest["log"]["metrics.jsonl"] += 10**6
        state.write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError):
            run.resume(folder, quiet=True)
    assert_closed(book, 6)
    pids = {int(who.split()[0]) for who in diary(book)["made"]}
    assert not [pid for pid in pids - {os.getpid()} if Path(f"/proc/{pid}").exists()]
    assert len(pids) == 1 or vectorization == "async"


def test_a_refused_start_closes_what_it_looked_at(tmp_path: Path) -> None:
    book = tmp_path / "diary"
    raw = settings(env(kwargs={"diary": str(book)}), objective="supervised")
    with pytest.raises(ConfigError, match="needs prediction tasks"):
        build(configs.check(raw), tmp_path / "run")
    assert_closed(book, 6)


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_all_processes_of_an_asynchronous_run_saves(number: signal.Signals, tmp_path: Path) -> None:
    """The case of shared/cases/bug_08; SIGTERM and SIGHUP go the same way."""
    out, book = tmp_path / "run", tmp_path / "diary"
    raw = settings(env(vectorization="async", kwargs={"diary": str(book)}))
    raw["stream"]["steps_per_task"] = 10**9
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    words = [sys.executable, "-m", "lifelong.agent.cli", "run", str(tmp_path / "c.yaml"), "--quiet", "--out", str(out)]
    process = subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size < 400:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number)
        error = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 3 and "Traceback" not in error
    assert checkpoint.load(out / "checkpoints")[0]["step"] > 0
    assert_closed(book, 6)
