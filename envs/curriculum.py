"""Curriculum: what is trained next depends on what has been learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Annotated, Any, Literal

from lifelong.envs.options import Range
from lifelong.envs.stream import Schedule, Segment


class Curriculum(Schedule):
    """The next task as soon as the evaluation says that those in training are known.

    Khajehabdollahi et al. (ICLR 2024, arXiv 2309.12927), section 2.2: with a head a task, `newest` is their single-head
    curriculum, and `all` their multi-head one. The stream ends after the steps of all tasks together, however many of
    them were reached.

    Args:
        criterion: performance (0 useless, 1 solved) that the newest task and the mean of those in training must reach.
        keep: the copies are all on the `newest` task, or are shared evenly by `all` that were reached.
    """

    def __init__(
        self,
        steps: Sequence[int],
        cycles: int,
        seed: int,
        *,
        criterion: Annotated[float, Range(0.0, 1e6)] = 0.95,
        keep: Literal["newest", "all"] = "newest",
    ) -> None:
        self.criterion, self.keep = criterion, keep
        #: the steps at which the criterion was met
        self.met: list[int] = []
        super().__init__(steps, cycles, seed)

    def plan(self, cycles: int) -> list[Segment]:
        self.total = sum(self.steps) * cycles
        return self._known()

    def _known(self) -> list[Segment]:
        edges = pairwise([0, *self.met, self.total])
        return [Segment(start, end, task) for task, (start, end) in enumerate(edges)]

    def look(self, step: int, performance: Sequence[float]) -> bool:
        newest = len(self.met)
        if newest == len(self.steps) - 1 or not self.segments[newest].start < step < self.total:
            return False
        mean = fmean(performance[: newest + 1]) if self.keep == "all" else performance[newest]
        if not (performance[newest] >= self.criterion and mean >= self.criterion):
            return False
        self.met.append(step)
        self.segments = self._known()
        return True

    def trained_until(self, segment: int) -> int:
        return self.total if self.keep == "all" else self.segments[segment].end

    def proportions(self, step: int) -> list[float]:
        return self.shares(self.segment_at(step))

    def stages(self) -> list[tuple[float, ...]]:
        return [tuple(self.shares(task)) for task in range(len(self.steps))]

    def shares(self, newest: int) -> list[float]:
        """Share of the copies on each task while `newest` is the newest one."""
        first = 0 if self.keep == "all" else newest
        return [float(first <= task <= newest) / (newest + 1 - first) for task in range(len(self.steps))]

    def state_dict(self) -> dict[str, Any]:
        return {"met": list(self.met)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.met = list(saved.get("met", []))
        self.segments = self._known()
