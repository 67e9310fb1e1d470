"""The continual-learning strategy contract. A strategy overrides the hooks it needs; all are optional.

Order of the hooks in one chunk, for a list of strategies in the order of the config: extra_reward, then

    transform_batch -> (loss) extra_loss -> (backward) transform_gradients -> (optimiser) transform_update
    -> after_update ... once a minibatch; then after_chunk and on_clock once a chunk. on_task_start and on_task_end fire
    at boundaries that are given, or that a detector finds. A chunk that `learns` declines is lived through: none of
    these but on_clock is called.

Whoever re-initialises units of the cell says which (on_task_start, after_update, after_chunk): the memory of every copy
and the carry of the gradient engine must forget what these units were. Parameters are re-initialised by
`agent.strategies.initial.reinitialise`, which tells all strategies (on_reset).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.objectives.base import Objective
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.policy import Outputs, Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.planned import HookCalls, Replays, Update
from lifelong.replay.chunk import Chunk

#: yields n experiences of fresh whole episodes of the current policy, without touching training: at a boundary on the
#: task that ended, on a clock on the tasks in training; what `chunk.weight` counts is uniform over the steps of
#: episodes, and `start` is the memory that a sequence starts from with its history (see `agent.runtime.source`)
Source = Callable[[int], Iterator[Experience]]


@dataclass(frozen=True)
class Context:
    """What a hook may know. Read-only; unless the stream shows the task id or gives boundaries, `task` is None and
    `segment` stays 0. Where a detector finds the boundaries, `segment` counts them."""

    policy: Policy
    objective: Objective
    step: int
    segment: int
    task: int | None
    copies: int
    steps: int
    device: torch.device
    #: for those that re-initialise parameters: what it keeps of them must go (see `agent.moments`)
    optimizer: torch.optim.Optimizer
    #: `copies` are this worker's; what a strategy learns from them must become equal everywhere, or stay its shard
    workers: Workers = ALONE
    #: the run folder, for what is too large for memory
    folder: Path | None = None
    #: in a minibatch: which of the copies its live ones are, int64; None: all of them in order
    rows: Tensor | None = None
    #: all of the run, which are told of what is re-initialised (see `agent.strategies.initial.reinitialise`)
    strategies: tuple[Strategy, ...] = ()


class Strategy:
    """Base of all strategies. What a strategy needs is declared, and checked before the run starts."""

    #: boundaries must be given or found (may depend on options, then set on the instance)
    needs_boundaries: bool = False
    #: the option that makes it work without boundaries: a number of steps; empty if there is none
    clock_option: ClassVar[str] = "every"
    #: the task id must be observed
    needs_task_id: bool = False
    #: the policy's actor must be one that composes the policies of tasks (see `agent.modules.composed`)
    composes: ClassVar[bool] = False
    #: it must know which task is in training: boundaries given, or the task id observed
    needs_task: bool = False
    #: the objective must correct for data of older policies
    needs_off_policy: bool = False
    #: all chunks must have `rollout.steps`; so it is with those that keep sequences, which need not say it
    one_length: ClassVar[bool] = False
    #: its state on data-parallel workers: `equal` by itself, made equal by a `reduce`, one `shard` each with a seed of
    #: its own, or `none`: it cannot run on more than one
    data_parallel: ClassVar[str] = "none"

    def expect(self, sequences: int) -> None:
        """Told before anything large is made how many sequences of a chunk's length the whole stream has."""

    def replay_sequences(self) -> int:
        """How many sequences of a chunk's length it will keep at most; the memory for them is asked for beforehand."""
        return 0

    def replay_memories(self) -> int:
        """How many memories of the cell it keeps with each of them: the one it starts from, and maybe later ones."""
        return 1

    def replay_bytes(self, exact: int, compact: int) -> dict[str, int]:
        """How many bytes its sequences take where (`device`, `host`, `disk`), if one of them takes so many, stored
        exactly or compactly."""
        return {"device": self.replay_sequences() * exact}

    def fresh_sequences(self, copies: int) -> int:
        """How many fresh sequences of a chunk's length it asks a source for at once, with so many copies; the memory
        for them is asked for beforehand, too."""
        return 0

    def setup(self, ctx: Context, seed: int) -> None:
        """Called once before training, when the policy exists."""

    def on_task_start(self, ctx: Context) -> Tensor | None:
        """A segment of the stream starts; return the units (int64) of the cell that were re-initialised, if any."""
        return None

    def on_task_end(self, ctx: Context, source: Source) -> None:
        """A segment of the stream has ended; `source` gives fresh experience on its task. If a detector found the end,
        that is the experience before it, maybe less than asked for (see `agent.runtime.detection`)."""

    def on_clock(self, ctx: Context, source: Source) -> None:
        """Called after every chunk, for strategies that consolidate on a clock instead of at boundaries."""

    def learns(self, ctx: Context) -> bool:
        """Whether the policy learns from the next chunk; with data-parallel workers, the same on all."""
        return True

    def extra_reward(self, ctx: Context, chunk: Chunk) -> Tensor | None:
        """What is added to the rewards [T, B] of the live chunk, for the loss alone; called once a chunk, without a
        gradient. Replay and the log keep the rewards of the environment."""
        return None

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        """The minibatch with replayed copies appended after the live ones."""
        return chunk

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        """A term added to the loss. Copies from index `live` on are replayed."""
        return None

    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        """Change the gradients in place, before clipping and the optimiser."""

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        """Change the realised step of every parameter in place, after the optimiser."""

    def after_update(self, ctx: Context) -> Tensor | None:
        """Change parameters directly; return the units (int64) of the cell that were re-initialised, if any."""
        return None

    def after_chunk(self, ctx: Context, experience: Experience) -> Tensor | None:
        """A chunk has been learned from: store it, look at activations; return the units (int64) of the cell that were
        re-initialised, if any."""
        return None

    def idle(self) -> tuple[str, ...]:
        """Names of hooks that it has and that do nothing with its options; a run without hooks is faster."""
        return ()

    def calls(self, update: Update) -> HookCalls:
        """What its hooks of an update do, as compiled calls (see `agent.strategies.planned`); a run whose strategies
        have them all is planned."""
        return {}

    def replays(self, copies: int) -> Replays | None:
        """What it replays beside so many live copies, if `replays_alone`."""
        return None

    def replays_alone(self) -> bool:
        """Whether `replays` says all that `transform_batch`, `extra_loss` and `after_chunk` do with its options."""
        return False

    def made_for(self) -> tuple[int | float, ...]:
        """Numbers and addresses that `calls` are made for, and made again if they change."""
        return ()

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """Entries of parameters have been re-initialised (name -> bool mask); what is kept of them must go."""

    def evaluation_view(self, ctx: Context, task: int) -> AbstractContextManager[None]:
        """Masks, heads or averaged weights while `task` is evaluated."""
        return nullcontext()

    def report(self) -> dict[str, float]:
        """Scalars for the log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data that resume needs."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, maybe of a policy with fewer tasks (see `agent.growth`)."""


def overrides(strategies: list[Strategy], hook: str) -> list[Strategy]:
    """The strategies that implement `hook`, so that unused hooks cost nothing."""
    return [s for s in strategies if getattr(type(s), hook) is not getattr(Strategy, hook)]
