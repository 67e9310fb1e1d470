"""Learning progress: the task that is trained next is one whose performance moves."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lifelong.envs.options import Share
from lifelong.envs.stream import Schedule, Segment


class LearningProgress(Schedule):
    """After every evaluation a task is drawn by how much its performance changed of late, up or down.

    Matiisen et al. (2017, arXiv 1707.00183, "Teacher-student curriculum learning"), the absolute form of their window
    of one, and Colas et al. (2019, arXiv 1810.06284): with the progress p_i = (1 - smoothing) |performance -
    performance at the evaluation before| + smoothing p_i, task i has a chance of explore / tasks + (1 - explore) p_i /
    sum of p. Tasks that are forgotten are drawn again, for they move, too. The stream ends after the steps of all tasks
    together.

    Args:
        explore: share of the draws that are uniform.
        smoothing: what is kept of the progress of before.
    """

    def __init__(
        self, steps: Sequence[int], cycles: int, seed: int, *, explore: Share = 0.2, smoothing: Share = 0.5
    ) -> None:
        self.explore, self.smoothing = explore, smoothing
        #: (step, task) of every draw; performance at the last evaluation; progress
        self.drawn: list[tuple[int, int]] = [(0, 0)]
        self.before = [math.nan] * len(steps)
        self.progress = [0.0] * len(steps)
        super().__init__(steps, cycles, seed)

    def plan(self, cycles: int) -> list[Segment]:
        self.total = sum(self.steps) * cycles
        return self._known()

    def _known(self) -> list[Segment]:
        edges = pairwise([*self.drawn, (self.total, -1)])
        return [Segment(start, end, task) for (start, task), (end, _) in edges]

    def chances(self) -> list[float]:
        """How likely every task is to be drawn; sums to one."""
        whole, tasks = sum(self.progress), len(self.steps)
        if not whole:
            return [1.0 / tasks] * tasks
        return [self.explore / tasks + (1 - self.explore) * each / whole for each in self.progress]

    def look(self, step: int, performance: Sequence[float]) -> bool:
        if not self.drawn[-1][0] < step < self.total:
            return False
        for task, (now, then) in enumerate(zip(performance, self.before, strict=True)):
            if not (math.isnan(now) or math.isnan(then)):
                kept = self.smoothing * self.progress[task]
                self.progress[task] = (1 - self.smoothing) * abs(now - then) + kept
        self.before = [then if math.isnan(now) else now for now, then in zip(performance, self.before, strict=True)]
        draw = random.Random(f"{self.seed} {len(self.drawn)} {step}")  # so that no state of it has to be saved
        (task,) = draw.choices(range(len(self.steps)), self.chances())
        self.drawn.append((step, task))
        self.segments = self._known()
        return True

    def stages(self) -> list[tuple[float, ...]]:
        return [tuple(float(i == task) for i in range(len(self.steps))) for task in range(len(self.steps))]

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": [list(each) for each in self.drawn], "before": self.before, "progress": self.progress}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if saved:
            self.drawn = [(step, task) for step, task in saved["drawn"]]
            self.before, self.progress = list(saved["before"]), list(saved["progress"])
        self.segments = self._known()
