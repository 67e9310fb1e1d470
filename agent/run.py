"""The commands: start a run, resume one, evaluate one. Here it is decided whether a run is one process or Ray's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

from lifelong.agent import config as configs
from lifelong.agent.config import Config
from lifelong.agent.distributed import cluster
from lifelong.agent.distributed.cluster import Connection
from lifelong.agent.distributed.runners import runner_rollout
from lifelong.agent.distributed.train import fit
from lifelong.agent.files import remove_partial, write
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.runtime import changes, session
from lifelong.agent.runtime.build import MakeActing, build
from lifelong.agent.runtime.changes import Change
from lifelong.agent.runtime.lean import without_compiler
from lifelong.agent.runtime.lock import claimed, held
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.trainer import Trainer

#: called with (environment step, all evaluations so far) after every evaluation
Listener = Callable[[int, Evaluations], None]


def start(
    config: Config,
    folder: Path | str | None = None,
    *,
    quiet: bool = False,
    on_evaluation: Listener | None = None,
    connection: Connection | None = None,
) -> tuple[Trainer, bool]:
    """Start a run.

    Args:
        config: checked, as `load_config` gives it.
        folder: a new one; without it `runs/<name>/<seed>`, or the first of `runs/<name>/<seed>-2`, `-3`, ... that is
            free.
        quiet: no progress.
        on_evaluation: called with the step and all evaluations so far after every evaluation.
        connection: to a cluster, which a run on Ray uses and closes.

    Returns:
        The trainer, and whether the stream has come to its end (else it was asked to stop).

    Raises:
        ConfigError: the folder holds a run already or another process uses it, or the config is impossible.
        DiskError: the folder cannot be written.
        ClusterError: a cluster is needed and cannot be reached, is too small or failed.

    Example:
        trainer, finished = lifelong.run(lifelong.load_config("quickstart"), "runs/mine")
    """
    wanted = Path(folder) if folder is not None else Path("runs") / config.name / str(config.seed)
    without_compiler()
    trainer = build(config, wanted, _planned(config), _acting(config))
    with closing(trainer), claimed(wanted, others=folder is None) as place:
        trainer.record.folder = place
        with _backend(trainer, connection) as backend:
            remove_partial(place)
            write(place / "config.yaml", configs.to_yaml(config))
            if not quiet:
                print(f"run folder {place}", file=sys.stderr)
            return trainer, _train(trainer, {}, backend, quiet, on_evaluation)


def resume(
    folder: Path | str,
    assignments: Sequence[str] = (),
    *,
    add: Sequence[str] = (),
    inexact: bool = False,
    quiet: bool = False,
    on_evaluation: Listener | None = None,
    connection: Connection | None = None,
) -> tuple[Trainer, bool]:
    """Go on with a run from its newest good checkpoint. What is changed is applied and written to `changes.jsonl`, or
    refused before anything is written.

    Args:
        folder: of the run.
        assignments: overrides, `a.b=value` with values in YAML.
        add: files of tasks (see `agent.adding`) that are trained after all others.
        inexact: it may go on with other kernels, versions or another device than it was trained with, which is written
            there, too.
        quiet: no progress.
        on_evaluation: called with the step and all evaluations so far after every evaluation.
        connection: to a cluster, which a run on Ray uses and closes.

    Returns:
        The trainer, and whether the stream has come to its end (else it was asked to stop).

    Raises:
        ConfigError: a change that a run that was trained cannot take, or another process uses the folder.
        CheckpointError: no run there, no usable checkpoint, one that does not fit the overrides, or one that would not
            go on bit for bit here.
        ClusterError: the cluster of a Ray run cannot be reached, is too small or failed.

    Example:
        trainer, finished = lifelong.resume("runs/mine", ["strategy=ewc"])
    """
    folder = Path(folder)
    session.check_run(folder)
    with held(folder):
        config = session.load_config(folder, assignments, add)
        asked = changes.between(session.load_config(folder), config)
        changes.read(folder)  # a damaged record is told before anything is written
        trains_here = config.runtime.backend == "inline"
        trainer, sizes = session.reopen(
            config, folder, _planned(config), _acting(config), inexact if trains_here else None
        )
        with closing(trainer), _backend(trainer, connection) as backend:
            remove_partial(folder)
            if assignments or add:
                write(folder / "config.yaml", configs.to_yaml(config))
            _note(trainer, asked)
            if not trainer.rollout.env.exact_state:
                print("note: this environment cannot save its state; fresh episodes start where the run goes on")
            return trainer, _train(trainer, sizes, backend, quiet, on_evaluation, inexact)


def evaluate(folder: Path, assignments: Sequence[str] = ()) -> Trainer:
    """Evaluate the newest checkpoint of a run once more; nothing is written."""
    trainer = opened(folder, assignments)
    with closing(trainer):
        ctx = replace(trainer.context(), workers=ALONE)
        trainer.evaluations.add(trainer.step, trainer.evaluator.evaluate(ctx, trainer.strategies))
    return trainer


def opened(folder: Path, assignments: Sequence[str] = (), *, beginning: bool = False) -> Trainer:
    """The trainer of a run at its newest checkpoint, or as it was before its first step, to look at; who asks for it
    closes it."""
    config = session.load_config(folder, assignments)
    if beginning:
        return build(config, folder, _planned(config), _acting(config))
    return session.load(config, folder, _planned(config), _acting(config))[0]


def _note(trainer: Trainer, asked: Sequence[Change]) -> None:
    """Record and tell what is changed: what the checkpoint does not have yet, and what else was asked for."""
    applied = trainer.record.changes
    applied += [change for change in asked if change.key not in {other.key for other in applied}]
    changes.record(trainer.record.folder, trainer.step, applied)
    for change in applied:
        print(f"changed at step {trainer.step:,}: {change}" + (f"; {change.note} starts afresh" if change.note else ""))


def _planned(config: Config) -> Workers:
    """Rank 0 of the workers that the run will have, to build and check its parts with before anything is started."""
    return Workers(0, config.runtime.workers)


def _acting(config: Config) -> MakeActing | None:
    """Who acts in the environments: environment runners, or None for the training process itself."""
    return runner_rollout if config.runtime.env_runners else None


def _backend(trainer: Trainer, connection: Connection | None) -> AbstractContextManager[Connection | None]:
    """What must run while the trainer does: environment runners, a cluster for the workers, or nothing."""
    if cluster.needed(trainer.config):
        return cluster.ready(trainer.config, trainer.record.folder, connection)
    return trainer.rollout.running()


def _train(
    trainer: Trainer,
    sizes: session.Sizes,
    backend: Connection | None,
    quiet: bool,
    on_evaluation: Listener | None,
    inexact: bool = False,
) -> bool:
    if on_evaluation is not None:
        trainer.on_evaluation = on_evaluation
    progress = Progress(trainer.stream.total_steps, trainer.step, quiet)
    try:
        with session.stop_signals() as stop:
            if backend is None:
                return session.train(trainer, sizes, progress, stop)
            return fit(trainer, progress, stop, backend, inexact)
    finally:
        progress.close()
