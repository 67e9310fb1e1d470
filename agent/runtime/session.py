"""What one process does with a run folder: reopen it, train in it until the end or a signal, and sum it up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from lifelong.agent import adding
from lifelong.agent import config as configs
from lifelong.agent.config import Config
from lifelong.agent.errors import CheckpointError, ConfigError
from lifelong.agent.files import check_shape, write_json
from lifelong.agent.parallel import Workers
from lifelong.agent.runtime import appended, changes, checkpoint
from lifelong.agent.runtime.build import MakeActing, build
from lifelong.agent.runtime.handover import hand_over
from lifelong.agent.runtime.identity import consent, differences
from lifelong.agent.runtime.logging import NoLog, RunLog
from lifelong.agent.runtime.machine import machine
from lifelong.agent.runtime.memory import held_bytes
from lifelong.agent.runtime.metrics import (
    average_performance,
    backward_transfer,
    final,
    forgetting,
    forgetting_max,
    learned,
)
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.summary import FILE, is_whole
from lifelong.agent.runtime.trainer import Order, Trainer

#: {file: bytes} of the log when a checkpoint was saved; empty at the beginning
Sizes = Mapping[str, int]


def check_run(folder: Path) -> None:
    """Refuse a folder without a run.

    Raises:
        CheckpointError: there is none.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder} is no run: it has no config.yaml; runs are folders such as runs/quickstart/0")


def load_config(folder: Path, assignments: Sequence[str] = (), add: Sequence[str] = ()) -> Config:
    """The config of the run in `folder`, with the tasks of the files `add` behind its own, and with overrides.

    Raises:
        CheckpointError: there is no run.
        ConfigError: a file without tasks, or an override that cannot be.
    """
    check_run(folder)
    return adding.load(folder, assignments, add)


def reopen(
    config: Config, folder: Path, workers: Workers, acting: MakeActing | None = None, inexact: bool | None = None
) -> tuple[Trainer, Sizes]:
    """What `load` returns; at the beginning if the run was killed before its first checkpoint."""
    if not workers.lead(len(checkpoint.checkpoints(folder / "checkpoints"))):
        return build(config, folder, workers, acting), {}
    return load(config, folder, workers, acting, inexact)


def load(
    config: Config, folder: Path, workers: Workers, acting: MakeActing | None = None, inexact: bool | None = None
) -> tuple[Trainer, Sizes]:
    """The trainer of a run at its newest good checkpoint, and the sizes of the files of its log then.

    Where `config` is not that of the checkpoint, what it holds is handed over; `record.changes` of the trainer says
    what was changed.

    Args:
        inexact: whether the run may go on with other kernels, versions or another device; None: it does not go on here.

    Raises:
        CheckpointError: no usable checkpoint, one of another shape, one of a log that is not all there, or one that
            would not go on bit for bit here.
        ConfigError: a change that a run that was trained cannot take.
    """
    saved, damaged = checkpoint.load(folder / "checkpoints", workers)
    for problem in damaged:
        print(f"note: {problem}; using an older one")
    if not {"config", "manifest"} <= saved.keys() or "identity" not in saved["manifest"]:
        raise CheckpointError(f"the checkpoint in {folder} was saved by an older lifelong; go on with that one")
    configs.find_own_modules(config)  # what was changed is told by the options of parts
    old = configs.check(saved["config"])
    old.runtime.device = config.runtime.device  # that of a worker is Ray's choice
    found = changes.between(old, config)
    changes.check(found, old, config, saved["step"])
    trainer = build(config, folder, workers, acting, saved["manifest"]["identity"].get("threads", 0))
    with ExitStack() as if_it_fails:
        if_it_fails.callback(trainer.close)
        try:
            check_shape(saved["manifest"], folder / "checkpoints", {"log": {str: int}, "identity": {}})
            sizes = saved["manifest"]["log"]
            appended.check(folder, sizes)
            trainer.record.changes = hand_over(saved, found, old, trainer)
            if inexact is not None and workers.rank == 0:
                differ = differences(saved["manifest"]["identity"], trainer.record.identity)
                consent(differ, folder, inexact)
                trainer.record.changes += differ
            trainer.load_state_dict(saved)
            trainer.evaluations.restore(folder, sizes[appended.POINTS])
        except (CheckpointError, ConfigError):
            raise
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint in {folder} does not fit this config: {reason}") from error
        if_it_fails.pop_all()
    return trainer, sizes


def train(
    trainer: Trainer,
    sizes: Sizes,
    progress: Progress,
    asked: Callable[[], Order | bool],
    open_log: Callable[[Path, Sizes], RunLog] = RunLog,
) -> bool:
    """Train in this process and write the run folder; True at the end of the stream, False if it was asked to stop.

    Raises:
        DiskError: something could not be written.
    """
    record = trainer.record
    first = trainer.workers.rank == 0
    with closing(open_log(record.folder, sizes) if first else NoLog()) as log:
        names = [task.name for task in trainer.stream.tasks]
        log.show(configs.to_dict(record.config), names, lambda: [s.start for s in trainer.stream.segments])
        if not sizes:  # else it is in the log already
            log.text("gradients", gradient_report(trainer))
        made = changes.read(record.folder)
        if any(change["step"] == trainer.step for change in made):
            log.text("changes", changes.table(made), trainer.step)
        for count, change in enumerate(made, start=1):
            if change["step"] == trainer.step:
                log.mark("changes", count, trainer.step)
        log.tensor(trainer.evaluations)
        finished = trainer.train(log, progress, asked)
        log.end(trainer.evaluations)
    unwritten = progress.start < trainer.step or not is_whole(record.folder)
    if finished and first and unwritten:
        write_json(record.folder / FILE, summary(trainer, progress.rate(trainer.step)))
    return finished


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT, SIGTERM and SIGHUP ask to stop after the current chunk; a second one stops at once.

    A SIGHUP that is ignored (`nohup`) stays ignored.

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

    caught = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    old = {number: signal.signal(number, note) for number in caught}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def gradient_report(trainer: Trainer) -> str:
    """Which parameters get an exact gradient over the whole history, and which a truncated one."""
    engine, T = trainer.learner.engine, trainer.steps
    exact = {f"cell.{name}" for name in engine.exact_parameters()}
    approximate = {f"cell.{name}" for name in engine.approximate_parameters()}
    names = [name for name, _ in trainer.rollout.policy.named_parameters() if name not in exact | approximate]
    timeless = {f"cell.{name}" for name in trainer.rollout.policy.cell.timeless_parameters()}
    outside = [name for name in names if name.startswith(("actor.", "critic.")) or name in timeless]
    truncated = [name for name in names if name not in outside]
    lines = []
    if exact:
        lines.append(f"exact over the whole history: {', '.join(sorted(exact))}")
    if approximate:
        lines.append(f"approximate over the whole history ({engine.approximation}): {', '.join(sorted(approximate))}")
    lines.append(f"no path through time: {', '.join(outside)}")
    if truncated:
        inside = f", and approximate inside them ({engine.inside})" if engine.inside else ""
        lines.append(f"truncated at {T} steps{inside}: {', '.join(truncated)}")
    return "\n".join(lines)


def summary(trainer: Trainer, steps_per_second: float) -> dict[str, Any]:
    """What `summary.json` holds: performance when each task's training ended and at the end, and what it ran on."""
    evaluations = trainer.evaluations
    config = trainer.record.config
    device = trainer.rollout.env.device.type
    performance = zip(trainer.stream.tasks, learned(evaluations), final(evaluations), evaluations.scored, strict=True)
    return {
        "config": configs.to_dict(config),
        "seed": config.seed,
        "env_steps": trainer.step,
        "steps_per_second": steps_per_second,
        "strategy_mib": sum(held_bytes(s.state_dict()) for s in trainer.strategies) / 2**20,
        "tasks": [{"name": t.name, "learned": float(a), "final": float(b), "scored": s} for t, a, b, s in performance],
        "average_performance": float(average_performance(evaluations)),
        "forgetting": float(forgetting(evaluations)),
        "forgetting_max": float(forgetting_max(evaluations)),
        "backward_transfer": float(backward_transfer(evaluations)),
        "segments": [{"start": s.start, "end": s.end, "task": s.task} for s in trainer.stream.segments],
        "changes": changes.read(trainer.record.folder),
        "plan": trainer.planned.report(),
        "exact_environment_state": trainer.rollout.env.exact_state,
        "versions": trainer.record.versions,
        "machine": {"device": device, "threads": trainer.record.identity["threads"], **machine(device)},
    }
