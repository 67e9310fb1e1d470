"""Runs on disk: start one, resume one, evaluate one, and write what came of it."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lifelong.agent import config as configs
from lifelong.agent.config import Config
from lifelong.agent.errors import CheckpointError, ConfigError, DiskError
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.runtime import checkpoint, cluster
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.cluster import Connection
from lifelong.agent.runtime.logging import NoLog, Progress, RunLog, write_json
from lifelong.agent.runtime.machine import machine
from lifelong.agent.runtime.metrics import (
    Evaluations,
    average_performance,
    backward_transfer,
    final,
    forgetting,
    learned,
)
from lifelong.agent.runtime.trainer import Order, Trainer


def default_folder(config: Config) -> Path:
    """runs/<name>/<seed>, or the first of runs/<name>/<seed>-2, -3, ... that is free."""
    base = Path("runs") / config.name / str(config.seed)
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}-{count}")
    return folder


#: called with (environment step, all evaluations so far) after every evaluation
Listener = Callable[[int, Evaluations], None]


def start(
    config: Config,
    folder: Path,
    *,
    quiet: bool = False,
    on_evaluation: Listener | None = None,
    connection: Connection | None = None,
) -> tuple[Trainer, bool]:
    """Start a run in the new folder `folder`; `(trainer, True at the end of the stream)`.

    A run on Ray uses `connection` if it is given, and closes it.

    Raises:
        ConfigError: the folder holds a run already, or the config is impossible.
        DiskError: the folder cannot be written.
        ClusterError: a cluster is needed and cannot be reached, is too small or failed.
    """
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} already holds a run; use `lifelong resume {folder}`, --resume, or another --out")
    trainer = build(config, folder, _planned(config))
    with _backend(trainer, connection) as backend:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(configs.to_yaml(config))
        except OSError as error:
            raise DiskError(f"cannot write to {folder}: {error.strerror}") from error
        if not quiet:
            print(f"run folder {folder}", file=sys.stderr)
        return trainer, _train(trainer, 0, backend, quiet, on_evaluation)


def resume(
    folder: Path,
    assignments: Sequence[str] = (),
    *,
    quiet: bool = False,
    on_evaluation: Listener | None = None,
    connection: Connection | None = None,
) -> tuple[Trainer, bool]:
    """Go on with the run in `folder` from its newest good checkpoint, with overrides if any.

    A run on Ray uses `connection` if it is given, and closes it.

    Raises:
        CheckpointError: no run there, no usable checkpoint, or one that does not fit the overrides.
        ClusterError: the cluster of a Ray run cannot be reached, is too small or failed.
    """
    config = load_config(folder, assignments)
    trainer, offset = reopen(config, folder, _planned(config))
    with _backend(trainer, connection) as backend:
        if assignments:
            (folder / "config.yaml").write_text(configs.to_yaml(config))
        if not trainer.rollout.env.exact_state:
            print("note: this environment cannot save its state; fresh episodes start where the run goes on")
        return trainer, _train(trainer, offset, backend, quiet, on_evaluation)


def _planned(config: Config) -> Workers:
    """Rank 0 of the workers that the run will have, to build and check its parts with before anything is started."""
    return Workers(0, config.runtime.workers)


def _backend(trainer: Trainer, connection: Connection | None) -> AbstractContextManager[Connection | None]:
    """What must run while the trainer does: environment runners, a cluster for the workers, or nothing."""
    if cluster.needed(trainer.config):
        return cluster.ready(trainer.config, trainer.record.folder, connection)
    return trainer.rollout.running()


def load_config(folder: Path, assignments: Sequence[str] = ()) -> Config:
    """The config of the run in `folder`, with overrides.

    Raises:
        CheckpointError: there is no run.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder} is no run: it has no config.yaml")
    return configs.load(str((folder / "config.yaml").resolve()), assignments)


def reopen(config: Config, folder: Path, workers: Workers) -> tuple[Trainer, int]:
    """What `load` returns; at the beginning if the run was killed before its first checkpoint."""
    if not workers.lead(len(checkpoint.checkpoints(folder / "checkpoints"))):
        return build(config, folder, workers), 0
    return load(config, folder, workers)


def load(config: Config, folder: Path, workers: Workers) -> tuple[Trainer, int]:
    """The trainer of a run at its newest good checkpoint, and the length of its metrics.jsonl then.

    Raises:
        CheckpointError: no usable checkpoint, or one of another shape.
    """
    saved, damaged = checkpoint.load(folder / "checkpoints", workers)
    for problem in damaged:
        print(f"note: {problem}; using an older one")
    trainer = build(config, folder, workers)
    try:
        trainer.load_state_dict(saved)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the checkpoint in {folder} does not fit this config: {reason}") from error
    return trainer, saved["metrics_offset"]


def evaluate(folder: Path, assignments: Sequence[str] = ()) -> Trainer:
    """Evaluate the newest checkpoint of a run once more; nothing is written."""
    config = load_config(folder, assignments)
    trainer, _ = load(config, folder, _planned(config))
    ctx = replace(trainer.context(), workers=ALONE)
    trainer.evaluations.add(trainer.step, trainer.evaluator.evaluate(ctx, trainer.strategies))
    return trainer


def _train(
    trainer: Trainer, offset: int, backend: Connection | None, quiet: bool, on_evaluation: Listener | None
) -> bool:
    if on_evaluation is not None:
        trainer.on_evaluation = on_evaluation
    progress = Progress(trainer.stream.total_steps, trainer.step, quiet)
    try:
        with stop_signals() as stop:
            if backend is None:
                return train(trainer, offset, progress, stop)
            return cluster.fit(trainer, progress, stop, backend)
    finally:
        progress.close()


def train(
    trainer: Trainer,
    offset: int,
    progress: Progress,
    asked: Callable[[], Order | bool],
    open_log: Callable[[Path, int, int], RunLog] = RunLog,
) -> bool:
    """Train in this process and write the run folder; True at the end of the stream, False if it was asked to stop.

    Raises:
        DiskError: something could not be written.
    """
    record = trainer.record
    first = trainer.workers.rank == 0
    try:
        log = open_log(record.folder, offset, trainer.step) if first else NoLog()
        log.text("config", "```yaml\n" + configs.to_yaml(record.config) + "```")
        log.text("gradients", gradient_report(trainer))
        finished = trainer.train(log, progress, asked)
        log.close()
        unwritten = progress.start < trainer.step or not (record.folder / "summary.json").exists()
        if finished and first and unwritten:
            write_json(record.folder / "summary.json", summary(trainer, progress.rate(trainer.step)))
    except OSError as error:
        raise DiskError(
            f"cannot write to {record.folder}: {error.strerror or error}; what was saved is kept"
        ) from error
    return finished


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask to stop after the current chunk; a second one stops at once.

    In a thread (a trial of Ray Tune) nothing is caught: signals belong to the main thread.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def gradient_report(trainer: Trainer) -> str:
    """Which parameters get an exact gradient over the whole history, and which a truncated one."""
    engine, T = trainer.learner.engine, trainer.steps
    exact = {f"cell.{name}" for name in engine.exact_parameters()}
    names = [name for name, _ in trainer.rollout.policy.named_parameters()]
    outside = [n for n in names if n not in exact and n.startswith(("actor.", "critic.", "cell.output_"))]
    truncated = [n for n in names if n not in exact and n not in outside]
    lines = []
    if exact:
        lines.append(f"exact over the whole history: {', '.join(sorted(exact))}")
    lines.append(f"no path through time: {', '.join(outside)}")
    if truncated:
        lines.append(f"truncated at {T} steps: {', '.join(truncated)}")
    return "\n".join(lines)


def summary(trainer: Trainer, steps_per_second: float) -> dict[str, Any]:
    """What `summary.json` holds: performance when each task's training ended and at the end, and what it ran on."""
    evaluations = trainer.evaluations
    config = trainer.record.config
    device = trainer.rollout.env.device.type
    performance = zip(trainer.stream.tasks, learned(evaluations), final(evaluations), strict=True)
    return {
        "config": configs.to_dict(config),
        "seed": config.seed,
        "env_steps": trainer.step,
        "steps_per_second": steps_per_second,
        "tasks": [{"name": t.name, "learned": float(a), "final": float(b)} for t, a, b in performance],
        "average_performance": float(average_performance(evaluations)),
        "forgetting": float(forgetting(evaluations)),
        "backward_transfer": float(backward_transfer(evaluations)),
        "segments": [{"start": s.start, "end": s.end, "task": s.task} for s in trainer.stream.segments],
        "exact_environment_state": trainer.rollout.env.exact_state,
        "versions": trainer.record.versions,
        "machine": {"device": device, "threads": config.runtime.threads, **machine(device)},
    }


def load_summary(folder: Path) -> dict[str, Any]:
    """The summary.json of a finished run."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content
