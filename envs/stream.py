"""TaskStream: which task every copy is on, as a pure function of the global step.

A schedule is seeded, so a stream is resumed by knowing the step (and, of a curriculum, where its criterion was met). It
does not depend on the number of copies or workers: a schedule gives *proportions* of tasks, and copy b of B takes the
task at its fixed quantile.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.envs.errors import EnvError
from lifelong.envs.options import LARGEST, Range
from lifelong.envs.tasks import Task, environment_class

#: a random schedule is drawn beforehand
MOST_DRAWS = 1_000_000


@dataclass(frozen=True)
class Segment:
    """Steps [start, end) of the stream, on one task (None: on all of them)."""

    start: int
    end: int
    task: int | None


class Schedule:
    """Base of all schedules.

    Args:
        steps: training steps of each task.
        cycles: how often the sequence of tasks is gone through.
        seed: for schedules that draw.
    """

    def __init__(self, steps: Sequence[int], cycles: int, seed: int) -> None:
        self.steps = list(steps)
        self.seed = seed
        self.segments = self.plan(cycles)

    def plan(self, cycles: int) -> list[Segment]:
        """The segments of the whole stream; task after task, `cycles` times, by default."""
        segments: list[Segment] = []
        for _ in range(cycles):
            for task, steps in enumerate(self.steps):
                start = segments[-1].end if segments else 0
                segments.append(Segment(start, start + steps, task))
        return segments

    @property
    def total_steps(self) -> int:
        """Length of the stream in environment steps."""
        return self.segments[-1].end

    def segment_at(self, step: int) -> int:
        """Index of the segment that `step` lies in (the last one after the end)."""
        return min(bisect.bisect_right(self.segments, step, key=lambda s: s.end), len(self.segments) - 1)

    def trained_until(self, segment: int) -> int:
        """The step at which training on the task of `segment` ends: the segment's end, unless borders are soft."""
        return self.segments[segment].end

    def left_from(self, segment: int) -> int:
        """The step from which on the task of `segment` gives way to the next one: the segment's end, unless borders are
        soft."""
        return self.segments[segment].end

    @property
    def smooth(self) -> bool:
        """Whether episodes go on from one task to the next, because the parameters move without a jump."""
        return False

    def position(self, step: int) -> tuple[int, int, float] | None:
        """(task, next task, fraction of the way) at `step` of a schedule that is smooth."""
        return None

    def proportions(self, step: int) -> list[float]:
        """Share of the copies on each task at `step`; sums to one."""
        shares = [0.0] * len(self.steps)
        task = self.segments[self.segment_at(step)].task
        if task is None:
            return [1.0 / len(shares)] * len(shares)
        shares[task] = 1.0
        return shares

    def stages(self) -> list[tuple[float, ...]]:
        """Where what was learned decides what comes next: the shares of the tasks in every stage there may be."""
        return []

    def look(self, step: int, performance: Sequence[float]) -> bool:
        """Told of every evaluation in training, with the performance of every task; True if the rest has changed."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What was found out on the way; nothing of a schedule that is known beforehand."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: it is of a schedule that found out what to train, and this one knows it beforehand.
        """
        if saved:
            raise ValueError("its tasks were trained by a curriculum, and now stream.schedule is another one")


class Sequential(Schedule):
    """One task after the other, in cycles."""


class Interleaved(Schedule):
    """All tasks at once, each on its share of the copies: the joint-training upper bound."""

    def plan(self, cycles: int) -> list[Segment]:
        return [Segment(0, sum(self.steps) * cycles, None)]


class Random(Schedule):
    """A task drawn anew every `every` steps, uniformly, never the same twice in a row.

    Args:
        every: steps between draws.
    """

    def __init__(
        self, steps: Sequence[int], cycles: int, seed: int, *, every: Annotated[int, Range(1, LARGEST)] = 20_000
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        if sum(steps) * cycles > every * MOST_DRAWS:
            draws = sum(steps) * cycles // every
            raise ValueError(f"every is {every:,}, which makes {draws:,} draws; at most {MOST_DRAWS:,} are kept")
        self.every = every
        super().__init__(steps, cycles, seed)

    def plan(self, cycles: int) -> list[Segment]:
        total = sum(self.steps) * cycles
        draw = random.Random(self.seed)
        segments: list[Segment] = []
        for start in range(0, total, self.every):
            last = segments[-1].task if segments else None
            choices = [t for t in range(len(self.steps)) if t != last] or [0]
            segments.append(Segment(start, min(start + self.every, total), draw.choice(choices)))
        return segments


class Blurry(Schedule):
    """Sequential with soft borders: around each border the share of the next task rises linearly from 0 to 1.

    A copy switches once per border, at its own time, so no copy jumps to and fro.

    Args:
        width: length of the transition as a fraction of the shorter of the two tasks, centred on the border.
    """

    def __init__(
        self,
        steps: Sequence[int],
        cycles: int,
        seed: int,
        *,
        width: Annotated[float, Range(0.0, 1.0, above=True)] = 0.5,
    ) -> None:
        if not 0 < width <= 1:
            raise ValueError(f"width is {width}; it must lie in (0, 1]")
        self.width = width
        super().__init__(steps, cycles, seed)

    def _half(self, before: Segment, after: Segment) -> float:
        """Half the length of the transition between two segments."""
        return 0.5 * self.width * min(before.end - before.start, after.end - after.start)

    def trained_until(self, segment: int) -> int:  # where the last copy leaves the task
        before, *following = self.segments[segment : segment + 2]
        return before.end + (math.ceil(self._half(before, following[0])) if following else 0)

    def left_from(self, segment: int) -> int:  # where the first copy leaves the task
        before, *following = self.segments[segment : segment + 2]
        return before.end - (math.floor(self._half(before, following[0])) if following else 0)

    def proportions(self, step: int) -> list[float]:
        shares, index = super().proportions(step), self.segment_at(step)
        for before, after in itertools.pairwise(self.segments[max(0, index - 1) : index + 2]):
            half = self._half(before, after)
            if abs(step - before.end) < half:
                share = (step - (before.end - half)) / (2 * half)
                shares = [0.0] * len(self.steps)
                shares[before.task or 0] += 1 - share
                shares[after.task or 0] += share
        return shares


class Drift(Schedule):
    """One environment whose parameters move linearly from each task's values to the next one's.

    At the start of segment i the parameters are those of its task, at its end those of the next task; in the last
    segment they stay. Episodes go on while the parameters move. A task is trained as long as they are nearer to its own
    than to the next one's: until the middle of its segment.
    """

    @property
    def smooth(self) -> bool:
        return True

    def trained_until(self, segment: int) -> int:
        here = self.segments[segment]
        return here.end if segment == len(self.segments) - 1 else (here.start + here.end + 1) // 2

    def left_from(self, segment: int) -> int:  # there is no moment; it is that from which on the next one is nearer
        return self.trained_until(segment)

    def position(self, step: int) -> tuple[int, int, float]:
        index = self.segment_at(step)
        segment = self.segments[index]
        following = self.segments[min(index + 1, len(self.segments) - 1)]
        fraction = min(1.0, (step - segment.start) / (segment.end - segment.start))
        return segment.task or 0, following.task or 0, fraction


class Phases(Schedule):
    """Schedules one after the other, each over tasks of its own: what was planned first, then what was added to it.

    Nothing in a phase depends on those that follow, so what was trained stays as it was when one is added.

    Args:
        schedules: those of the phases; the tasks of all are numbered through.

    Raises:
        EnvError: one of them finds out by itself which tasks come next.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        if any(schedule.stages() for schedule in schedules):
            raise EnvError("a curriculum says itself which task comes next, so none can be added; start a new run")
        self.schedules = list(schedules)
        self.steps = [steps for schedule in schedules for steps in schedule.steps]
        self.segments = []
        #: of each phase: its first step, its first task, its first segment
        self.firsts: list[tuple[int, int, int]] = []
        step = task = 0
        for schedule in self.schedules:
            self.firsts.append((step, task, len(self.segments)))
            alone = task if task and len(schedule.steps) == 1 else None
            self.segments += [
                Segment(step + s.start, step + s.end, alone if s.task is None else task + s.task)
                for s in schedule.segments
            ]
            step, task = self.segments[-1].end, task + len(schedule.steps)

    def _phase(self, step: int) -> int:
        return max(phase for phase, (first, _, _) in enumerate(self.firsts) if first <= step or phase == 0)

    @property
    def smooth(self) -> bool:
        return self.schedules[0].smooth

    def trained_until(self, segment: int) -> int:
        phase = max(phase for phase, (_, _, first) in enumerate(self.firsts) if first <= segment)
        step, _, first = self.firsts[phase]
        return step + self.schedules[phase].trained_until(segment - first)

    def left_from(self, segment: int) -> int:
        phase = max(phase for phase, (_, _, first) in enumerate(self.firsts) if first <= segment)
        step, _, first = self.firsts[phase]
        return step + self.schedules[phase].left_from(segment - first)

    def position(self, step: int) -> tuple[int, int, float] | None:
        phase = self._phase(step)
        start, task, _ = self.firsts[phase]
        local = self.schedules[phase].position(step - start)
        return None if local is None else (task + local[0], task + local[1], local[2])

    def proportions(self, step: int) -> list[float]:
        phase = self._phase(step)
        start, task, _ = self.firsts[phase]
        shares = [0.0] * len(self.steps)
        local = self.schedules[phase].proportions(step - start)
        shares[task : task + len(local)] = local
        return shares


class TaskStream:
    """The stream of tasks that a run goes through.

    Args:
        tasks: the tasks, in order.
        schedule: what is trained when.
        share: the stream ends after this first share of the schedule; what comes before does not depend on it.

    Raises:
        EnvError: drift over tasks of more than one environment, or a share outside (0, 1].
    """

    def __init__(self, tasks: Sequence[Task], schedule: Schedule, share: float = 1.0) -> None:
        if not 0 < share <= 1:
            raise EnvError(f"stream.share is {share:g}; it must lie in (0, 1]")
        self.tasks = list(tasks)
        self.schedule = schedule
        #: length of the stream in environment steps
        self.total_steps = max(1, round(share * schedule.total_steps))
        self._plan()
        if schedule.smooth and len({task.group() for task in self.tasks}) > 1:
            raise EnvError(
                "schedule drift moves the parameters of one environment; its tasks use several (or other options)"
            )

    def _plan(self) -> None:
        #: the segments in order
        self.segments = [
            replace(segment, end=min(segment.end, self.total_steps))
            for segment in self.schedule.segments
            if segment.start < self.total_steps
        ]
        ends = {s.end for s in self.segments} | {self.trained_until(i) for i in range(len(self.segments))}
        #: the steps at which a segment, or training on its task, ends
        self.borders = sorted(ends)
        pairs = enumerate(itertools.pairwise(self.segments))
        #: the steps at which the task changes, or begins to
        self.changes = [self.schedule.left_from(i) for i, (here, following) in pairs if here.task != following.task]

    def look(self, step: int, performance: Sequence[float]) -> list[int]:
        """Told of every evaluation in training, with the performance of every task; where training on each ends."""
        if step < self.total_steps and self.schedule.look(step, performance):
            self._plan()
        return self.training_ends()

    def state_dict(self) -> dict[str, Any]:
        """What the schedule found out on the way."""
        return self.schedule.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned (see `Schedule.load_state_dict`)."""
        self.schedule.load_state_dict(saved)
        self._plan()

    @property
    def smooth(self) -> bool:
        """Whether episodes go on from one task to the next, because the parameters move without a jump."""
        return self.schedule.smooth

    def segment_at(self, step: int) -> int:
        """Index of the segment that `step` lies in (the last one after the end)."""
        return min(self.schedule.segment_at(step), len(self.segments) - 1)

    def tasks_at(self, step: int, copies: int) -> Tensor:
        """The task of every one of `copies` copies at `step`, int64 [B] on the host."""
        return spread(tuple(self.schedule.proportions(step)), copies)

    def never_trained(self, copies: int, frames: int) -> list[int]:
        """Tasks in the stream that no chunk of `frames` steps is on, with so many copies."""
        planned: set[int] = set()
        trained: set[int] = set()
        everyone = set(range(len(self.tasks)))
        for segment in self.segments:
            planned |= everyone if segment.task is None else {segment.task}
            first = -(-segment.start // frames) * frames  # where the first chunk that begins in it begins
            if first < segment.end and (segment.task is None or segment.task not in trained):
                trained |= set(self.tasks_at(first, copies).tolist())
        if self.schedule.stages():
            return sorted(everyone.difference(*(spread(shares, copies).tolist() for shares in self.schedule.stages())))
        if self.total_steps >= self.schedule.total_steps:  # nothing was left out on purpose
            planned = everyone
        return sorted(planned - trained)

    def partly_reset(self, copies: int, group_of: Sequence[int]) -> set[int]:
        """The groups of tasks in which some copies start fresh episodes while others go on.

        Args:
            copies: B.
            group_of: the group of every task; all copies of a group are one environment.
        """
        found: set[int] = set()
        if self.smooth:
            return found
        groups, before_B = torch.tensor(group_of), torch.zeros(copies, dtype=torch.int64)
        started = {group_of[0]}  # where all copies have been reset
        for segment in self.segments[:1000]:  # what comes later is found when it happens
            for step in (segment.start, (segment.start + segment.end) // 2):
                task_B = self.tasks_at(step, copies)
                changed_B = task_B != before_B
                for group in set(groups[task_B[changed_B]].tolist()):
                    if group in started and not bool((changed_B & (groups[task_B] == group)).all()):
                        found.add(group)
                    started.add(group)
                before_B = task_B
        return found

    def params_at(self, step: int) -> dict[str, float]:
        """Parameters of all copies at `step` under a drift schedule; empty under any other."""
        position = self.schedule.position(step)
        if position is None:
            return {}
        here, there, fraction = position
        a, b = self.tasks[here].params, self.tasks[there].params
        default = {name: p.default for name, p in environment_class(self.tasks[here].kind).all_params().items()}
        a, b = ({name: params.get(name, default[name]) for name in {**a, **b}} for params in (a, b))
        return {name: (1 - fraction) * a[name] + fraction * b[name] for name in a}

    def trained_until(self, segment: int) -> int:
        """The step at which training on the task of `segment` ends, for metrics and strategies."""
        return min(self.schedule.trained_until(segment), self.total_steps)

    def training_end(self, task: int) -> int:
        """The step at which training on `task` ends for the last time (the end of the stream if it never was alone)."""
        ends = [self.trained_until(i) for i, segment in enumerate(self.segments) if self._trains(segment, task)]
        return max(ends) if ends else self.total_steps

    def training_ends(self) -> list[int]:
        """`training_end` of every task."""
        return [self.training_end(task) for task in range(len(self.tasks))]

    def _trains(self, segment: Segment, task: int) -> bool:
        return task == segment.task if segment.task is not None else self.schedule.proportions(segment.start)[task] > 0

    def history(self, step: int) -> list[tuple[int, int, int | None, int, dict[int, float]]]:
        """What was trained before `step`: start, end and task of every segment, until when its task was trained, and
        the share of the copies that each task had when it began. Streams with equal histories have the same past."""
        return [
            (
                segment.start,
                min(segment.end, step),
                segment.task,
                min(self.trained_until(index), step),
                {task: share for task, share in enumerate(self.schedule.proportions(segment.start)) if share},
            )
            for index, segment in enumerate(self.segments)
            if segment.start < step
        ]


@functools.lru_cache(maxsize=16)
def spread(shares: tuple[float, ...], copies: int) -> Tensor:
    """The task of every one of `copies` copies where each task has its share of them, int64 [B] on the host."""
    edges = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    return torch.searchsorted(edges, quantiles(copies), right=True)


@functools.cache
def quantiles(copies: int) -> Tensor:
    """Evenly spaced quantiles in (0, 1), one a copy, in an order that spreads any run of neighbours (golden ratio)."""
    order = torch.frac(torch.arange(1, copies + 1, dtype=torch.float64) * 0.6180339887498949)
    rank = torch.empty(copies, dtype=torch.float64)
    rank[order.argsort()] = torch.arange(copies, dtype=torch.float64)
    return (rank + 0.5) / copies
