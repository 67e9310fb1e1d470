"""The training loop: stream -> env -> policy -> chunk -> objective -> gradients -> strategies -> optimiser -> log."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import IntEnum
from typing import Any

from torch import Tensor

from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.registry import REGISTRY, is_foreign
from lifelong.agent.runtime import state
from lifelong.agent.runtime.capture import ChunkRunner, Graph
from lifelong.agent.runtime.detection import Detection
from lifelong.agent.runtime.evaluation import Evaluator
from lifelong.agent.runtime.finite import NotFinite
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.logging import NoLog, RunLog
from lifelong.agent.runtime.metrics import Evaluations, over_tasks
from lifelong.agent.runtime.planned.plan import Planned
from lifelong.agent.runtime.plasticity import plasticity
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.record import Record
from lifelong.agent.runtime.rescue import check_returns, drop, look, rescue
from lifelong.agent.runtime.rollout import Acting, Experience
from lifelong.agent.runtime.schedules import Schedules
from lifelong.agent.runtime.source import Fresh, Lived
from lifelong.agent.strategies.base import Context, Strategy, overrides
from lifelong.envs.registry import ADAPTERS
from lifelong.envs.stream import TaskStream


class Order(IntEnum):
    """What training is asked to do after a chunk; a bool will do where there is nothing to save."""

    GO_ON = 0
    STOP = 1  # save a checkpoint and stop
    SAVE = 2  # save a checkpoint and go on


class Trainer:
    """One learner on one stream. `agent.runtime.build` makes it from a config.

    On several data-parallel workers each has a trainer; `step`, `copies` and the stream are those of all together.

    Attributes:
        step: environment steps so far, all copies together.
        segment: index of the stream's segment in training; -1 before the first chunk.
    """

    def __init__(
        self,
        record: Record,
        stream: TaskStream,
        rollout: Acting,
        learner: Learner,
        strategies: list[Strategy],
        evaluator: Evaluator,
        evaluations: Evaluations,
        fresh: Fresh | Lived,
        workers: Workers = ALONE,
        graph: Callable[[], Graph] | None = None,
        detection: Detection | None = None,
    ) -> None:
        self.config = config = record.config
        self.record, self.stream, self.rollout, self.learner = record, stream, rollout, learner
        self.schedules = Schedules(config, learner.optimizer, learner.objective)
        self.strategies, self.evaluator, self.evaluations = strategies, evaluator, evaluations
        self.workers, self.detection = workers, detection
        self.fresh: Fresh | Lived = fresh
        self.clocked = overrides(strategies, "on_clock")
        #: whether a part of the user's own takes part in learning
        parts = [config.gradient, config.objective, config.optimizer, config.detector, *config.strategy]
        self.foreign = any(map(is_foreign, [config.policy.encoder, config.policy.cell, *parts]))
        kinds = [task.env["kind"] for task in config.stream.tasks]
        #: whether acting may raise: environments are not ours, or elsewhere
        self.fragile = not (rollout.owns_environments and set(kinds) <= REGISTRY["env"].keys() - {*ADAPTERS})
        self._performance: tuple[int, dict[str, float]] = 0, {}  # number of evaluations, the last one
        self.copies, self.steps = config.rollout.copies, config.rollout.steps
        #: acts for T steps and learns from them; with a `graph`, as one CUDA graph
        self.chunk = ChunkRunner(rollout, learner, strategies, self.steps, graph, kept=detection is not None)
        self.planned = Planned(self, watched=detection is not None)
        self.step, self.segment, self.ended = 0, -1, 0  # ended: segments whose task is not trained any more
        self.logged = 0  # step at the last line of the log
        self.frames = 0  # steps of the last chunk, all its copies together
        self.opened = ExitStack()  # the environments
        self.owed = False  # an evaluation that was begun has not been finished
        #: called after every evaluation, by whoever tunes this run
        self.on_evaluation: Callable[[int, Evaluations], None] = lambda step, evaluations: None

    def close(self) -> None:
        """Close the environments. What was learned and measured stays; nothing can be stepped any more."""
        self.opened.close()

    def train(
        self, log: RunLog | NoLog, progress: Progress, asked: Callable[[], Order | bool] = lambda: Order.GO_ON
    ) -> bool:
        """Train to the end of the stream; `asked()` is what to do after a chunk, the same on all workers.

        Returns:
            True at the end of the stream; False if it was asked to stop (a checkpoint has been saved).
        """
        new = not self.evaluations.complete and self.step < self.stream.total_steps  # tasks that nobody has seen yet
        if new or self.owed:
            self.evaluate(log, None)
        while self.step < self.stream.total_steps:
            with rescue(self, log):
                experience = self.advance()
            if self.due(self.config.log_every):
                self.log(log, progress)
            if self.due(self.config.evaluation.every) or self.at_border():
                self.evaluate(log, experience)
            progress.update(self.step, self.task_name(), self.performance())
            order = asked()
            if order or self.due(self.config.checkpoint.every) or self.step >= self.stream.total_steps:
                self.save(log)
            if order == Order.STOP:
                return False
        return True

    def advance(self) -> Experience | None:
        """A chunk, or several that are planned: act, learn, let the strategies see it. None if it was dropped."""
        self.follow_stream()
        self.chunk.steps = self.schedules.apply(self.step)
        try:
            if (planned := self.planned.advance(self)) is not None:
                return planned
            experience, metrics, reset_units = self.chunk(self.context())
        except NotFinite as found:
            drop(self, found)
            return None
        self.learner.finite.mark(self.step, experience, metrics)
        for units in reset_units:
            self.rollout.reset_units(units)
        if self.learner.learns(self.context()):
            for strategy in self.strategies:
                self.forget(strategy.after_chunk(self.context(), experience))
        self.frames = experience.chunk.copies * experience.chunk.steps * self.workers.count
        self.step += self.frames
        for strategy in self.clocked:
            strategy.on_clock(self.context(), self.source)
        if self.detection:
            self.detection.look(self, experience, metrics)
        self.record.add(metrics, experience)
        return experience

    # ---- the stream ----------------------------------------------------------------------------------------------

    def follow_stream(self) -> None:
        """Put every copy on its task; tell the strategies of a boundary if it is given, or the first start."""
        segment = self.stream.segment_at(self.step)
        told = self.config.stream.boundaries == "given"
        while self.step >= self.stream.trained_until(self.ended) and self.ended < len(self.stream.segments) - 1:
            if told:
                source = functools.partial(self.source, task=self.stream.segments[self.ended].task)
                for strategy in self.strategies:
                    strategy.on_task_end(self.context(self.ended), source)
            self.ended += 1
        if segment != self.segment:
            first, self.segment = self.segment < 0, segment
            if told or (self.detection and first):
                for strategy in self.strategies:
                    self.forget(strategy.on_task_start(self.context()))
        task_B = self.stream.tasks_at(self.step, self.copies)[self.workers.share(self.copies)]
        self.rollout.switch(task_B, fresh=not self.stream.smooth)
        self.rollout.env.set_params(**self.stream.params_at(self.step))

    def forget(self, units: Tensor | None) -> None:
        """The `units` (int64) of the cell have been re-initialised between two chunks: memory and carry lose them."""
        if units is not None:
            self.learner.reset_units(units)
            self.rollout.reset_units(units)
            if self.detection:
                self.detection.reset_units(self.rollout.policy, units)

    def context(self, segment: int | None = None) -> Context:
        """What the hooks may know now; of `segment` instead of the one in training if it is given."""
        stream = self.config.stream
        segment = self.segment if segment is None else segment
        shown = stream.task_id == "observed" or stream.boundaries == "given"
        seen = segment if shown else min(segment, 0)
        return Context(
            policy=self.rollout.policy,
            objective=self.learner.objective,
            step=self.step,
            segment=len(self.detection.alarms) if self.detection else seen,
            task=self.stream.segments[segment].task if shown and segment >= 0 else None,
            copies=self.rollout.env.num_envs,
            steps=self.steps,
            device=self.rollout.env.device,
            optimizer=self.learner.optimizer,
            workers=self.workers,
            folder=self.record.folder,
            strategies=tuple(self.strategies),
        )

    def source(self, chunks: int, task: int | None = None) -> Iterator[Experience]:
        """Whole fresh episodes of the current policy on `task`, by default on the tasks in training as they are now;
        training itself is not touched (see `agent.runtime.source`)."""
        return self.fresh.source(self, chunks, task)

    def due(self, every: int) -> bool:
        """Whether a multiple of `every` was passed in the last chunk."""
        return self.step // every != (self.step - self.frames) // every

    def at_border(self) -> bool:
        """Whether a segment, or training on its task, has just ended."""
        passed, before = (
            bisect.bisect_right(self.stream.borders, step) for step in (self.step, self.step - self.frames)
        )
        return passed != before

    def task_name(self) -> str:
        """The task in training, for people."""
        task = self.stream.segments[max(self.segment, 0)].task
        return "all" if task is None else self.stream.tasks[task].name

    # ---- the log -------------------------------------------------------------------------------------------------

    def log(self, log: RunLog | NoLog, progress: Progress) -> None:
        """Means since the last line, over all workers; of the engine's figures the largest."""
        look(self)
        scalars = self.record.flush(self.workers)
        carry = {f"gradient/{name}": x.clone() for name, x in self.learner.engine.report().items()}
        self.workers.max_(list(carry.values()))
        scalars |= {name: float(x) for name, x in carry.items()}
        for strategy, spec in zip(self.strategies, self.config.strategy, strict=True):
            kind = spec["kind"].rpartition(":")[2].lower()
            reports = self.workers.gather(strategy.report())
            scalars |= {f"strategy/{kind}/{name}": sum(r[name] for r in reports) / len(reports) for name in reports[0]}
        scalars |= {**self.schedules.report(self.step), **(self.detection.report(self) if self.detection else {})}
        log.scalars(self.step, scalars)
        if drawn := self.learner.engine.histograms():
            log.histograms(self.step, {f"gradient/{name}": x.tolist() for name, x in drawn.items()})
        clock = {"speed/env_steps_per_second": progress.rate(self.step)}
        clock |= self.workers.speed((self.step - self.logged) // self.workers.count)
        self.logged = self.step
        log.clock(self.step, {**clock, **self.rollout.timing()})

    def evaluate(self, log: RunLog | NoLog, experience: Experience | None) -> None:
        """Evaluate every task and write evaluation.npz."""
        self.owed = True
        with rescue(self, log):
            returns = self.evaluator.evaluate(self.context(), self.strategies)
        check_returns(self, returns)
        self.evaluations.add(self.step, returns)
        self.evaluations.training_end = self.stream.look(self.step, self.evaluations.performance_at(-1).tolist())
        self.owed = False
        scalars = {f"evaluation/{name}": value for name, value in self.performance().items()}
        scalars |= over_tasks(self.evaluations)
        if experience is not None:
            scalars |= plasticity(self.rollout.policy, experience.chunk)
        log.scalars(self.step, scalars)
        log.evaluation(self.evaluations)
        self.on_evaluation(self.step, self.evaluations)

    def performance(self) -> dict[str, float]:
        """The last evaluation of every task."""
        count, performance = self._performance
        if count != len(self.evaluations.steps):
            last = self.evaluations.performance_at(-1)
            performance = {task.name: float(value) for task, value in zip(self.stream.tasks, last, strict=True)}
            self._performance = len(self.evaluations.steps), performance
        return performance

    # ---- the checkpoint ------------------------------------------------------------------------------------------

    def save(self, log: RunLog | NoLog) -> None:
        """Write a checkpoint from which the run goes on bit for bit."""
        look(self)
        state.save(self, log)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training depends on (see `agent.runtime.state`)."""
        return {**self.shared_state(), **self.own_state()}

    def shared_state(self) -> dict[str, Any]:
        """What is equal on all workers."""
        return state.shared(self)

    def own_state(self) -> dict[str, Any]:
        """What belongs to this worker: its environments, carry, replay and randomness."""
        return state.own(self)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; strategies that were not there before start afresh."""
        state.load(self, saved)
