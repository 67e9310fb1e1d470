"""Boundaries that a detector finds: the strategies are told of them, and look back on what came before.

The task that ended is gone, so nothing fresh can be played of it. What there is is experience: the last chunks before
the change, as many as a strategy asks for. The policy as it is now goes through them once more: outputs, values and
memory are its own, and the carry is moved along from the oldest chunk kept, so the whole history from there on counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifelong.agent.detectors.base import Detector
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Strategy, overrides
from lifelong.replay.chunk import Chunk

if TYPE_CHECKING:
    from lifelong.agent.runtime.trainer import Trainer


@dataclass
class Kept:
    """A chunk to look back on, with the returns of the episodes that ended in it."""

    step: int  # after it
    chunk: Chunk
    episode_return_TB: Tensor
    done_TB: Tensor

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {**vars(self), "chunk": dict(vars(self.chunk))}

    @staticmethod
    def of(saved: Mapping[str, Any], device: torch.device) -> Kept:
        """What `state_dict` returned."""
        chunk = Chunk(**{name: tensor.to(device) for name, tensor in saved["chunk"].items()})
        return Kept(saved["step"], chunk, saved["episode_return_TB"].to(device), saved["done_TB"].to(device))


@torch.no_grad()
def relived(
    policy: Policy,
    new_engine: Callable[[int], GradientEngine],
    kept: Sequence[Kept],
    context: int | None,
    count: int,
) -> Iterator[Experience]:
    """The last `count` of consecutive chunks, or all if there are fewer, as the policy as it is now goes through them.

    Observations, actions and rewards are those of then. The oldest chunk starts from its stored memory, without a
    history; from there on memory and carry are those of the parameters as they are now.

    Args:
        policy: as it is now.
        new_engine: makes an engine for so many copies.
        kept: the chunks, oldest first.
        context: stands in place of the task in what is yielded; None: the task is shown.
        count: how many are yielded.

    Yields:
        Experiences whose `engine` holds the carry of their first states.
    """
    if not kept:
        return
    copies = kept[0].chunk.copies
    state_BS, engine = kept[0].chunk.state, new_engine(copies)
    for index, one in enumerate(kept):
        chunk, inputs = replace(one.chunk, state=state_BS), inputs_of(one.chunk)
        x_TBD = policy.encode(inputs)
        after_TBS = policy.cell.states(x_TBD, state_BS, chunk.is_init)
        state_TBS = torch.cat([state_BS.unsqueeze(0), after_TBS[:-1]])
        if index >= len(kept) - count:
            outputs = policy.sequence(chunk, state_BS)
            bootstrap_B, final_TB = outputs.after() if outputs.after else (chunk.bootstrap_value, chunk.final_value)
            its = new_engine(copies)
            its.load_state_dict({name: tensor.clone() for name, tensor in engine.state_dict().items()})
            now = replace(
                chunk,
                task=chunk.task if context is None else torch.full_like(chunk.task, context),
                policy=outputs.policy,
                log_prob=policy.distribution.log_prob(outputs.policy, chunk.action),
                value=outputs.value,
                bootstrap_value=bootstrap_B,
                final_value=final_TB,
            )
            yield Experience(now, x_TBD, state_TBS, one.episode_return_TB, one.done_TB, engine=its)
        engine.advance(engine.trace(x_TBD, state_TBS, chunk.is_init))
        state_BS = after_TBS[-1]


def verdict(changes: Sequence[int], alarms: Sequence[int], step: int, *, over: bool = False) -> dict[str, float]:
    """What a detector found until `step`, beside the truth.

    The first alarm from a change on and before the next one has found it; every other alarm is false. A change that no
    alarm has found is missed once the next one has come, or the stream is over.

    Args:
        changes: the steps at which the task changed.
        alarms: the steps of the alarms.
        step: now.
        over: nothing will be found any more.
    """
    came = [change for change in changes if change < step]
    delays = []
    for index, change in enumerate(came):
        until = came[index + 1] if index + 1 < len(came) else step + 1
        found = [alarm for alarm in alarms if change < alarm <= until]
        delays += [found[0] - change] if found else []
    waiting = bool(came) and not over and not any(alarm > came[-1] for alarm in alarms)
    scores = {
        "alarms": float(len(alarms)),
        "false_alarms": float(len(alarms) - len(delays)),
        "missed": float(len(came) - len(delays) - waiting),
    }
    return {**scores, "delay": sum(delays) / len(delays)} if delays else scores


class Detection:
    """What a run with `stream.boundaries` detected has more than another.

    Args:
        detector: watches.
        strategies: which are told.
        copies: of this worker.

    Attributes:
        alarms: the steps at which boundaries were found.
    """

    def __init__(self, detector: Detector, strategies: list[Strategy], copies: int) -> None:
        self.detector, self.strategies = detector, strategies
        self.keep = chunks_kept(strategies, copies, detector.lookback)
        self.kept: list[Kept] = []
        self.alarms: list[int] = []

    def look(self, trainer: Trainer, experience: Experience, metrics: Mapping[str, Tensor]) -> None:
        """Keep the chunk, let the detector see it, and tell the strategies if it gives an alarm."""
        one = Kept(trainer.step, experience.chunk, experience.episode_return_TB, experience.done_TB)
        self.kept = [*self.kept, one][-self.keep :] if self.keep else []
        new = self.detector.watch(experience, metrics)
        if not new:
            return
        before, self.kept = self.kept[:-new], self.kept[-new:]
        last = before[-1].step if before else trainer.step
        context = None if trainer.config.stream.task_id == "observed" else len(self.alarms)
        source = functools.partial(relived, trainer.rollout.policy, trainer.fresh.engine, before, context)
        for strategy in self.strategies:
            strategy.on_task_end(trainer.context(trainer.stream.segment_at(last - 1)), source)
        self.alarms.append(trainer.step)
        for strategy in self.strategies:
            trainer.forget(strategy.on_task_start(trainer.context()))

    def reset_units(self, policy: Policy, units: Tensor) -> None:
        """What the stored memories hold of re-initialised `units` (int64) counts no more."""
        for one in self.kept:
            policy.cell.reset_units(one.chunk.state, units)

    def report(self, trainer: Trainer) -> dict[str, float]:
        """Scalars for the log."""
        step, stream = trainer.step, trainer.stream
        truth = verdict(stream.changes, self.alarms, step, over=step >= stream.total_steps)
        scores = {**self.detector.report(), **truth}
        return {f"detector/{name}": value for name, value in scores.items()}

    def shared_state(self) -> dict[str, Any]:
        """What is equal on all workers."""
        return {"detector": self.detector.state_dict(), "alarms": self.alarms}

    def own_state(self) -> list[dict[str, Any]]:
        """What belongs to this worker."""
        return [one.state_dict() for one in self.kept]

    def load_state_dict(
        self, shared: Mapping[str, Any], own: Sequence[Mapping[str, Any]], device: torch.device
    ) -> None:
        """Restore both; without a state of the detector that starts afresh."""
        self.alarms = list(shared["alarms"])
        if "detector" in shared:
            self.detector.load_state_dict(shared["detector"])
        self.kept = [Kept.of(saved, device) for saved in own]


def chunks_kept(strategies: list[Strategy], copies: int, lookback: int) -> int:
    """How many chunks are kept: as many as a strategy asks for at once, and those that may be of the new context."""
    if not overrides(strategies, "on_task_end"):
        return 0
    return lookback + max(1, *(-(-strategy.fresh_sequences(copies) // copies) for strategy in strategies))
