"""What becomes of a run when a number is not finite, or when code of an environment or of another part raises.

Nothing is learned from numbers that are not finite: the run stops, or the chunk is dropped. When code raises, what was
learned is saved first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lifelong.agent.errors import CheckpointError, ClusterError, DiskError, NonFiniteError, PartError
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.finite import NotFinite, bad_copies
from lifelong.agent.runtime.randomness import as_tensors, globals_now
from lifelong.agent.runtime.walk import map_tensors
from lifelong.envs.border import told

if TYPE_CHECKING:
    from lifelong.agent.runtime.logging import NoLog, RunLog
    from lifelong.agent.runtime.trainer import Trainer

_KEPT = "; the last checkpoint is kept; on_nonfinite=skip drops such chunks"


# ---- numbers that are not finite -------------------------------------------------------------------------------------


def drop(trainer: Trainer, found: NotFinite) -> None:
    """Learn nothing from a chunk. Copies that hold numbers that are not finite start a fresh episode with an empty
    memory; if the loss or its gradient is not finite, all copies do.

    Raises:
        NonFiniteError: the run is to stop (`on_nonfinite`).
    """
    if trainer.config.on_nonfinite == "stop":
        raise NonFiniteError(_sentence(trainer, found) + _KEPT)
    trainer.record.skipped += 1
    logging.getLogger("lifelong").warning("%s; the chunk is dropped", _sentence(trainer, found))
    env = trainer.rollout.env
    bad_B = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    if found.experience is not None:
        bad_B = bad_copies(found.experience)
        trainer.learner.live_through(found.experience, ~bad_B)
        if found.experience.copies is not None:  # of all copies
            bad_B = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device).index_put(
                (found.experience.copies,), bad_B
            )
    if trainer.detection:  # what it keeps is consecutive
        trainer.detection.kept = []
    trainer.learner.reset(bad_B)
    trainer.rollout.restart(bad_B)
    trainer.frames = trainer.copies * trainer.chunk.steps
    trainer.step += trainer.frames


def look(trainer: Trainer) -> None:
    """Read what was noted on a GPU about numbers that are not finite, and look at the parameters.

    Raises:
        NonFiniteError: there was one.
    """
    try:
        trainer.learner.finite.look()
    except NotFinite as found:
        raise NonFiniteError(_sentence(trainer, found) + _KEPT) from None
    for name, parameter in trainer.learner.named.items():
        if not bool(parameter.isfinite().all()):
            raise NonFiniteError(f"the parameter {name} is not finite at step {trainer.step:,}" + _KEPT)


def check_returns(trainer: Trainer, returns: np.ndarray) -> None:
    """Refuse the returns of an evaluation, [tasks, episodes], that are not finite.

    Raises:
        NonFiniteError: one is not.
    """
    for task, row in zip(trainer.stream.tasks, returns, strict=True):
        if not np.isfinite(row).all():
            raise NonFiniteError(
                f"the return of task {task.name!r} in episode {int(np.argmin(np.isfinite(row)))} of the evaluation at "
                f"step {trainer.step:,} is not finite; the last checkpoint is kept"
            )


def _sentence(trainer: Trainer, found: NotFinite) -> str:
    start = trainer.step if found.start is None else found.start
    if found.task < 0:
        return f"the {found.what} is not finite in the chunk that begins at step {start:,}"
    where = f"task {trainer.stream.tasks[found.task].name!r} in copy {found.copy}"
    return f"the {found.what} of {where} is not finite at step {start + found.step * trainer.copies:,}"


# ---- code that raises ------------------------------------------------------------------------------------------------

#: they say all there is to say, and there is nothing to save
_TOLD = (NonFiniteError, DiskError, CheckpointError)


class Moment:
    """The state between two chunks, as references: what acting replaces while it goes on, it does not overwrite.

    Learning does overwrite. Where a part of the user's own takes part in it, parameters and optimiser are copied.
    """

    def __init__(self, trainer: Trainer) -> None:
        learner = trainer.learner
        self.steps, self.step = learner.steps, trainer.step
        self.rollout = trainer.rollout.state_dict() if trainer.rollout.owns_environments else None
        self.own = {"minibatches": learner.generator.get_state(), "torch_random": torch.get_rng_state()}
        self.globals = globals_now()
        self.learned: dict[str, Any] | None = None
        if trainer.foreign:
            learned = {"policy": trainer.rollout.policy.state_dict(), "optimizer": learner.optimizer.state_dict()}
            self.learned = map_tensors(learned, torch.clone)


@contextmanager
def rescue(trainer: Trainer, log: RunLog | NoLog) -> Iterator[None]:
    """Save a checkpoint of the last finished chunk if code that is not ours raises, and say in one sentence what did.

    An error while acting or evaluating leaves a checkpoint from which the run goes on bit for bit. After one while
    learning, parameters and optimiser are those of the last finished chunk and the episodes start afresh.

    Raises:
        PartError: instead of whatever was raised, `sys.exit` too; errors that say all themselves pass.
    """
    before = Moment(trainer) if trainer.fragile or trainer.foreign else None
    try:
        yield
    except _TOLD:
        raise
    except (Exception, SystemExit) as error:
        saved = _save(trainer, before, log)
        kind = ClusterError if isinstance(error, ClusterError) else PartError
        raise kind(f"{told(error)}; {saved}") from error


def _save(trainer: Trainer, before: Moment | None, log: RunLog | NoLog) -> str:
    """Save what can be saved; says what that is."""
    kept = "the last checkpoint is kept"
    if before is None or trainer.workers.count > 1:  # the others do not know of it
        return kept
    if before.step == 0:
        return "nothing had been learned yet"
    learning = trainer.learner.steps != before.steps
    if learning and before.learned is None:
        return kept
    trainer.step = before.step
    shared = {**trainer.shared_state(), "minibatches": before.own["minibatches"]}
    own = {**trainer.own_state(), "torch_random": before.own["torch_random"]}
    own["global_random"] = as_tensors(before.globals)
    if learning:
        shared |= before.learned or {}
        own |= {name: map_tensors(own[name], torch.zeros_like) for name in ("carry", "traces")}
        own["rollout"] = {"fresh": trainer.config.seed + before.step}
    elif before.rollout is not None:
        own["rollout"] = before.rollout
    checkpoint.save(
        trainer.record.folder / "checkpoints",
        before.step,
        shared,
        own,
        trainer.record.about(log),
        trainer.config.checkpoint.keep,
    )
    return f"what was learned until step {before.step:,} is saved"
