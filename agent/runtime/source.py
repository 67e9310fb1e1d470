"""What strategies consolidate from: the steps that the current policy meets in whole episodes of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.runtime.detection import Kept, relived
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.replay.chunk import Chunk, concatenate

if TYPE_CHECKING:
    from lifelong.agent.runtime.trainer import Trainer


@dataclass
class _Rows:
    """Sequences that may be drawn, one row each, with the key that decides about it."""

    key_M: Tensor
    chunk: Chunk
    over_time: tuple[Tensor, ...]  # [T, M, ...]: inputs and states of the cell, returns and ends of episodes
    carry: dict[str, Tensor]  # of the first states, [M, ...]

    def select(self, index: Tensor) -> _Rows:
        """The rows `index` (int64)."""
        over_time = tuple(x.index_select(1, index) for x in self.over_time)
        carry = {name: x.index_select(0, index) for name, x in self.carry.items()}
        return _Rows(self.key_M.index_select(0, index), self.chunk.select(index), over_time, carry)


def _drawn(parts: list[_Rows], count: int) -> _Rows:
    """The `count` rows with the largest keys, in that order, which is random."""
    key_M = torch.cat([part.key_M for part in parts])
    over_time = tuple(torch.cat(column, 1) for column in zip(*(part.over_time for part in parts), strict=True))
    carry = {name: torch.cat([part.carry[name] for part in parts]) for name in parts[0].carry}
    together = _Rows(key_M, concatenate([part.chunk for part in parts]), over_time, carry)
    return together.select(key_M.topk(count).indices)


@dataclass(frozen=True)
class Fresh:
    """Makes what fresh experience comes from, beside training."""

    rollout: Callable[[int], tuple[Rollout, torch.Generator]]  # step -> copies of its own, and a generator on the host
    engine: Callable[[int], GradientEngine]  # an engine like the learner's for so many copies

    def source(self, trainer: Trainer, chunks: int, task: int | None) -> Iterator[Experience]:
        """Whole fresh episodes of the current policy on `task`, by default on the tasks in training as they are now."""
        rollout, generator = self.rollout(trainer.step)
        with closing(rollout.env):
            now = trainer.rollout.env.task_B
            rollout.switch(now if task is None else torch.full_like(now, task))
            if task is None:
                rollout.env.set_params(**trainer.stream.params_at(trainer.step))
            limit = trainer.config.evaluation.max_steps
            yield from whole_episodes(rollout, self.engine, trainer.steps, chunks, limit, generator)


@dataclass(frozen=True)
class Lived:
    """What stands in for fresh experience where nobody can play any: the last chunks that were lived, as the policy as
    it is now goes through them (see `agent.runtime.detection.relived`)."""

    engine: Callable[[int], GradientEngine]  # an engine like the learner's for so many copies
    kept: Callable[[], list[Kept]]  # the chunks, oldest first

    def source(self, trainer: Trainer, chunks: int, task: int | None) -> Iterator[Experience]:
        """The last `chunks` of the task in training, or of the one that has just ended if it is asked for."""
        hidden = trainer.config.stream.task_id != "observed"
        context = (trainer.segment if task is None else trainer.ended) if hidden else None
        yield from relived(trainer.rollout.policy, self.engine, self.kept(), context, chunks)


def whole_episodes(
    rollout: Rollout,
    new_engine: Callable[[int], GradientEngine],
    steps: int,
    chunks: int,
    max_steps: int,
    generator: torch.Generator,
) -> Iterator[Experience]:
    """Sequences of T steps, drawn uniformly and without replacement from whole episodes of the policy as it is now.

    Every copy plays `chunks * steps` steps from the start of an episode, with an empty memory, and goes on to the end
    of the episode that it is in then. The number of its episodes is a stopping time, so by Wald's identity a mean over
    the steps is, in expectation of numerator and denominator, the mean over the steps of an episode: where an episode
    has its decision does not matter. All that was played is cut into sequences, and `chunks` times as many as there are
    copies are drawn. Steps after the end of a copy's last episode have weight 0 and a blank observation.

    Args:
        rollout: copies that nobody else uses, on the task in question.
        new_engine: makes an engine for so many copies; its carry is advanced over the episodes.
        steps: T.
        chunks: how many experiences are yielded, each of as many sequences as there are copies.
        max_steps: an episode that is longer than this, counted from step `chunks * steps` on, is cut there.
        generator: of the draw, on the host.

    Yields:
        Experiences whose `engine` holds the carry of their first states.
    """
    copies, device = rollout.env.num_envs, rollout.env.device
    asked, share = chunks * copies, chunks * steps
    engine = new_engine(copies)
    rollout.start()
    playing_B = torch.ones(copies, dtype=torch.bool, device=device)
    kept: list[_Rows] = []
    floor = 0.0  # rows with a smaller key cannot be drawn any more
    age_T1 = torch.arange(1, steps + 1, device=device).unsqueeze(-1)
    for played in range(0, share + max_steps, steps):
        experience = rollout.collect(steps)
        last_TB = experience.done_TB & (played + age_T1 >= share)  # ends of episodes after which a copy stops
        counts_TB = playing_B & (last_TB.cumsum(0) - last_TB.long() == 0)
        key_B = torch.rand(copies, generator=generator, dtype=torch.float64).to(device)
        index = (playing_B & (key_B >= floor)).nonzero().squeeze(-1)
        ends_TB = experience.done_TB & counts_TB
        over_time = (experience.x_TBD, experience.state_TBS, experience.episode_return_TB, ends_TB)
        rows = _Rows(key_B, _only(experience.chunk, counts_TB), over_time, engine.state_dict())
        kept.append(rows.select(index))
        engine.advance(engine.trace(experience.x_TBD, experience.state_TBS, experience.chunk.is_init))
        if sum(len(rows.key_M) for rows in kept) > 2 * asked:
            kept = [_drawn(kept, asked)]
            floor = float(kept[0].key_M[-1])
        playing_B = playing_B & ~last_TB.any(0)
        if not bool(playing_B.any()):
            break
    drawn = _drawn(kept, asked)
    for index in torch.arange(asked, device=device).split(copies):
        part, its_engine = drawn.select(index), new_engine(copies)
        its_engine.load_state_dict(part.carry)
        x_TBD, state_TBS, return_TB, done_TB = part.over_time
        yield Experience(part.chunk, x_TBD, state_TBS, return_TB, done_TB, engine=its_engine)


def _only(chunk: Chunk, counts_TB: Tensor) -> Chunk:
    """The chunk with nothing to be seen of the steps that do not count."""
    mask = counts_TB.view(*counts_TB.shape, *([1] * (chunk.obs.dim() - 2)))
    return replace(chunk, obs=chunk.obs * mask, weight=chunk.weight * counts_TB)
