"""The training loop: stream -> env -> policy -> chunk -> objective -> gradients -> strategies -> optimiser -> log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from agent.runtime import checkpoint
from agent.runtime.evaluation import Evaluator
from agent.runtime.learner import Learner
from agent.runtime.logging import Progress, RunLog
from agent.runtime.metrics import Evaluations, average_performance
from agent.runtime.plasticity import plasticity
from agent.runtime.record import Record
from agent.runtime.rollout import Experience, Rollout
from agent.runtime.runners import RunnerRollout
from agent.strategies.base import Context, Strategy, overrides
from envs.stream import TaskStream


class Trainer:
    """One learner on one stream. `agent.runtime.build` makes it from a config.

    Attributes:
        step: environment steps so far, all copies together.
        segment: index of the stream's segment in training; -1 before the first chunk.
    """

    def __init__(
        self,
        record: Record,
        stream: TaskStream,
        rollout: Rollout | RunnerRollout,
        learner: Learner,
        strategies: list[Strategy],
        evaluator: Evaluator,
        evaluations: Evaluations,
        fresh_rollout: Callable[[int], Rollout],
    ) -> None:
        self.record, self.config = record, record.config
        self.stream, self.rollout, self.learner = stream, rollout, learner
        self.strategies, self.evaluator, self.evaluations = strategies, evaluator, evaluations
        self.fresh_rollout = fresh_rollout
        self.clocked = overrides(strategies, "on_clock")
        self.copies, self.steps = self.config.rollout.copies, self.config.rollout.steps
        self.step, self.segment = 0, -1
        self.frames = 0  # steps of the last chunk, all its copies together
        #: called after every evaluation, by whoever tunes this run
        self.on_evaluation: Callable[[int, Evaluations], None] = lambda step, evaluations: None

    def train(self, log: RunLog, progress: Progress, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end of the stream.

        Returns:
            True at the end of the stream; False if `stop()` asked to stop (a checkpoint has been saved).
        """
        if self.step == 0 and not self.evaluations.steps:
            self.evaluate(log, None)
        while self.step < self.stream.total_steps:
            self.follow_stream()
            experience = self.rollout.collect(self.steps)
            metrics, reset_units = self.learner.update(self.context(), experience)
            for units in reset_units:
                self.rollout.reset_units(units)
            for strategy in self.strategies:
                strategy.after_chunk(self.context(), experience)
            self.frames = experience.chunk.copies * experience.chunk.steps
            self.step += self.frames
            for strategy in self.clocked:
                strategy.on_clock(self.context(), self.source)
            self.record.add(metrics, experience)
            if self.due(self.config.log_every):
                self.log(log, progress)
            if self.due(self.config.evaluation.every) or self.at_border():
                self.evaluate(log, experience)
            progress.update(self.step, self.task_name(), self.performance())
            stopped = stop()
            if stopped or self.due(self.config.checkpoint.every) or self.step >= self.stream.total_steps:
                self.save(log)
            if stopped:
                return False
        return True

    # ---- the stream ----------------------------------------------------------------------------------------------

    def follow_stream(self) -> None:
        """Put every copy on its task; tell the strategies of a boundary if the stream gives boundaries."""
        segment = self.stream.segment_at(self.step)
        told = self.config.stream.boundaries == "given"
        if segment != self.segment:
            if told and self.segment >= 0:
                for strategy in self.strategies:
                    strategy.on_task_end(self.context(), self.source)
            self.segment = segment
            if told:
                for strategy in self.strategies:
                    strategy.on_task_start(self.context())
        self.rollout.switch(self.stream.tasks_at(self.step, self.copies), fresh=not self.stream.smooth)
        self.rollout.env.set_params(**self.stream.params_at(self.step))

    def context(self) -> Context:
        """What the hooks may know now."""
        stream = self.config.stream
        shown = stream.task_id == "observed" or stream.boundaries == "given"
        return Context(
            policy=self.rollout.policy,
            objective=self.learner.objective,
            step=self.step,
            segment=self.segment,
            task=self.stream.segments[self.segment].task if shown and self.segment >= 0 else None,
            copies=self.copies,
            steps=self.steps,
            device=self.rollout.env.device,
        )

    def source(self, chunks: int) -> Iterator[Experience]:
        """Fresh experience of the current policy on the tasks in training; training itself is not touched."""
        rollout = self.fresh_rollout(self.step)
        rollout.switch(self.rollout.env.task_B)
        rollout.env.set_params(**self.stream.params_at(self.step))
        for _ in range(chunks):
            yield rollout.collect(self.steps)

    def due(self, every: int) -> bool:
        """Whether a multiple of `every` was passed in the last chunk."""
        return self.step // every != (self.step - self.frames) // every

    def at_border(self) -> bool:
        """Whether the segment in training has just ended."""
        return self.step >= self.stream.segments[self.segment].end

    def task_name(self) -> str:
        """The task in training, for people."""
        task = self.stream.segments[max(self.segment, 0)].task
        return "all" if task is None else self.stream.tasks[task].name

    # ---- the log -------------------------------------------------------------------------------------------------

    def log(self, log: RunLog, progress: Progress) -> None:
        """Means since the last line."""
        scalars = self.record.flush()
        scalars |= {f"gradient/{name}": float(x) for name, x in self.learner.engine.report().items()}
        for strategy, spec in zip(self.strategies, self.config.strategy, strict=True):
            kind = spec["kind"].rpartition(":")[2].lower()
            scalars |= {f"strategy/{kind}/{name}": value for name, value in strategy.report().items()}
        log.scalars(self.step, scalars)
        log.clock(self.step, {"speed/env_steps_per_second": progress.rate(self.step), **self.rollout.timing()})

    def evaluate(self, log: RunLog, experience: Experience | None) -> None:
        """Evaluate every task and write evaluation.npz."""
        self.evaluations.add(self.step, self.evaluator.evaluate(self.context(), self.strategies))
        scalars = {f"evaluation/{name}": value for name, value in self.performance().items()}
        scalars["continual/average_performance"] = average_performance(self.evaluations)
        if experience is not None:
            scalars |= plasticity(self.rollout.policy, experience.chunk)
        log.scalars(self.step, scalars)
        self.evaluations.save(self.record.folder / "evaluation.npz")
        self.on_evaluation(self.step, self.evaluations)

    def performance(self) -> dict[str, float]:
        """The last evaluation of every task."""
        last = self.evaluations.performance()[-1]
        return {task.name: float(value) for task, value in zip(self.stream.tasks, last, strict=True)}

    # ---- the checkpoint ------------------------------------------------------------------------------------------

    def save(self, log: RunLog) -> None:
        """Write a checkpoint from which the run goes on bit for bit."""
        state = {**self.state_dict(), "metrics_offset": log.offset()}
        checkpoint.save(
            self.record.folder / "checkpoints", self.step, state, self.record.versions, self.config.checkpoint.keep
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that training depends on."""
        return {
            "step": self.step,
            "segment": self.segment,
            "policy": self.rollout.policy.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "carry": self.learner.engine.state_dict(),
            "minibatches": self.learner.generator.get_state(),
            "rollout": self.rollout.state_dict(),
            "strategies": {
                spec["kind"]: strategy.state_dict()
                for strategy, spec in zip(self.strategies, self.config.strategy, strict=True)
            },
            "evaluations": self.evaluations.state_dict(),
            "record": self.record.state_dict(),
            "torch_random": torch.get_rng_state(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; strategies that were not there before start afresh."""
        self.step, self.segment = saved["step"], saved["segment"]
        self.rollout.policy.load_state_dict(saved["policy"])
        self.learner.optimizer.load_state_dict(saved["optimizer"])
        self.learner.engine.load_state_dict(saved["carry"])
        self.learner.generator.set_state(saved["minibatches"])
        self.rollout.load_state_dict(saved["rollout"])
        for strategy, spec in zip(self.strategies, self.config.strategy, strict=True):
            if spec["kind"] in saved["strategies"]:
                strategy.load_state_dict(saved["strategies"][spec["kind"]])
        self.evaluations.load_state_dict(saved["evaluations"])
        self.record.load_state_dict(saved["record"])
        torch.set_rng_state(saved["torch_random"])
