"""Streams in which old tasks come back: by a power law of how long ago they were, or as visits that nobody
announces."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from lifelong.envs.options import LARGEST, Range, Share
from lifelong.envs.stream import MOST_DRAWS, Schedule, Segment


class PowerLaw(Schedule):
    """A task drawn anew every `every` steps, with a probability that falls as a power of the time since it was last on.

    After Gandhi et al. (2024, arXiv 2401.10393) and Anderson & Schooler (1991): of the tasks that were on before, and
    are not on now, one of age a (in draws) is drawn with a weight of a^-exponent; with probability `novelty` the next
    task of the list comes for the first time. All tasks come, the last ones at the end if they must.

    Args:
        exponent: d; 0 draws all tasks that were on before alike.
        every: steps between draws.
        novelty: probability of a new task, as long as there are some.
    """

    def __init__(
        self,
        steps: Sequence[int],
        cycles: int,
        seed: int,
        *,
        exponent: Annotated[float, Range(0.0, 20.0)] = 0.5,
        every: Annotated[int, Range(1, LARGEST)] = 20_000,
        novelty: Share = 0.1,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        if sum(steps) * cycles > every * MOST_DRAWS:
            draws = sum(steps) * cycles // every
            raise ValueError(f"every is {every:,}, which makes {draws:,} draws; at most {MOST_DRAWS:,} are kept")
        self.exponent, self.every, self.novelty = exponent, every, novelty
        super().__init__(steps, cycles, seed)

    def plan(self, cycles: int) -> list[Segment]:
        total, draw = sum(self.steps) * cycles, random.Random(self.seed)
        draws = -(-total // self.every)
        last, tasks = [0], [0]  # of every task that was on: the last draw of it; of every draw: its task
        for n in range(1, draws):
            unseen = len(self.steps) - len(last)
            if unseen and (draw.random() < self.novelty or draws - n <= unseen):
                task = len(last)
                last.append(n)
            elif len(last) == 1:
                task = 0
            else:
                weights = [(n - seen) ** -self.exponent if seen < n - 1 else 0.0 for seen in last]
                task = draw.choices(range(len(last)), weights)[0]
            last[task] = n
            tasks.append(task)
        starts = [*range(0, total, self.every), total]
        return [Segment(start, end, task) for (start, end), task in zip(pairwise(starts), tasks, strict=True)]


class Visits(Schedule):
    """One task after the other, and now and then one of the tasks before comes back, at a time that nobody knows.

    Every task but the first gives the share `visits` of its steps to visits of `length` steps, each to one of the tasks
    before it in its cycle (after the first cycle: to any other one), at places that are drawn.

    Args:
        visits: share of the steps.
        length: steps of a visit.
    """

    def __init__(
        self,
        steps: Sequence[int],
        cycles: int,
        seed: int,
        *,
        visits: Share = 0.2,
        length: Annotated[int, Range(1, LARGEST)] = 20_000,
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; it must be at least 1")
        self.visits, self.length = visits, length
        super().__init__(steps, cycles, seed)

    def plan(self, cycles: int) -> list[Segment]:
        draw, segments = random.Random(self.seed), list[Segment]()
        for whole in super().plan(cycles):
            task = whole.task or 0
            others = [t for t in range(len(self.steps)) if t != task and (t < task or whole.start >= sum(self.steps))]
            steps = whole.end - whole.start
            count = min(int(self.visits * steps / self.length), (steps - 1) // (2 * self.length)) if others else 0
            own = steps - count * self.length  # steps of its own, cut into count + 1 parts of at least one step
            cuts = sorted(draw.sample(range(1, own), count)) if count else []
            start = whole.start
            for part, end in pairwise([0, *cuts, own]):
                segments.append(Segment(start, start + end - part, task))
                start = segments[-1].end
                if end < own:
                    segments.append(Segment(start, start + self.length, draw.choice(others)))
                    start += self.length
        return segments
