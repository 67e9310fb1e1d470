"""What a run writes while it trains: TensorBoard events, metrics.jsonl, timing.jsonl, evaluation.jsonl and
evaluation.npz.

`metrics.jsonl` holds nothing that depends on the clock, so it is the same, byte for byte, in a run that was killed and
resumed; everything that does depend on it goes to `timing.jsonl`. The x-axis of everything is environment steps.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.agent.errors import DiskError
from lifelong.agent.files import sync
from lifelong.agent.runtime.appended import METRICS, POINTS, TIMING, Appended, present, rewind
from lifelong.agent.runtime.dashboard import Dashboard
from lifelong.agent.runtime.events import Events
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.runtime.trackers import Tracker, opened


class RunLog:
    """The log files of one run folder, cut back to what the checkpoint saw that the run goes on from.

    Args:
        folder: run folder, which exists.
        sizes: {file: bytes} of the checkpoint; nothing for a run from the beginning.

    Raises:
        CheckpointError: a file is shorter than the checkpoint says.
        DiskError: something cannot be written (in every method, too).
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        rewind(folder, sizes)
        self.folder = folder
        self.metrics, self.timing, self.points = (Appended(folder / name) for name in (METRICS, TIMING, POINTS))
        self.events = Events(folder)
        self.dashboard: Dashboard | None = None
        self.trackers: list[Tracker] = []
        self.enough = 0  # evaluation points with which evaluation.npz is written again

    def show(self, config: Mapping[str, Any], tasks: Sequence[str], starts: Callable[[], Sequence[int]]) -> None:
        """Let TensorBoard show more than curves (see `agent.runtime.dashboard`), and begin with the trackers."""
        self.trackers = opened(self.folder, config)
        self.dashboard = Dashboard(self.events, config, tasks, starts)
        if self.events.new:
            self.dashboard.open()

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """A text page in TensorBoard."""
        self.events.text(tag, text, step)

    def mark(self, tag: str, count: int, step: int) -> None:
        """A point of TensorBoard's alone, that shows when something happened."""
        self.events.scalars(step, {tag: float(count)})

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl and one point of every scalar in TensorBoard."""
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self.metrics.write((json.dumps({"step": step, **finite}) + "\n").encode())
        self.events.scalars(step, scalars)
        for tracker in self.trackers:
            tracker.scalars(step, {name: value for name, value in finite.items() if value is not None})

    def histograms(self, step: int, histograms: Mapping[str, Sequence[float]]) -> None:
        """One point of every histogram, in TensorBoard alone."""
        self.events.histograms(step, histograms)

    def clock(self, step: int, scalars: dict[str, float], once: dict[str, float] | None = None) -> None:
        """The same for figures that depend on the clock; `once` goes to timing.jsonl alone, as its curves were dots."""
        line = {"step": step, "time": time.time(), **scalars, **(once or {})}
        self.timing.write((json.dumps(line) + "\n").encode())
        self.events.scalars(step, scalars)

    def evaluation(self, evaluations: Evaluations) -> None:
        """The last evaluation point. Its line is appended; the tensor is written again when it has grown by a tenth, so
        that a point costs the same however many there are."""
        self.points.write(evaluations.line().encode())
        if self.dashboard is not None:
            self.dashboard.evaluation(evaluations)
        if len(evaluations.steps) >= self.enough:
            self.tensor(evaluations)

    def tensor(self, evaluations: Evaluations) -> None:
        """evaluation.npz, with all points there are, if there are any."""
        if evaluations.steps:
            evaluations.save(self.folder / "evaluation.npz")
        self.enough = len(evaluations.steps) + max(1, len(evaluations.steps) // 10)

    def sizes(self) -> dict[str, int]:
        """{file: bytes} of everything so far, for the checkpoint; all of it is on the disk."""
        for file in (self.metrics, self.timing, self.points, self.events.file):
            if file is not None:
                file.sync()
        for tracker in self.trackers:
            tracker.sync()
        try:
            sync(self.folder)
        except OSError as error:
            raise DiskError(f"cannot write {self.folder}: {error.strerror}; what was saved is kept") from error
        return {path.name: os.stat(path).st_size for path in present(self.folder)}

    def end(self, evaluations: Evaluations) -> None:
        """What stands at the end of a run, or of this part of it."""
        self.tensor(evaluations)
        if self.dashboard is not None:
            self.dashboard.matrix(evaluations)

    def close(self) -> None:
        """Close the files."""
        for file in (self.metrics, self.timing, self.points, self.events.file):
            if file is not None:
                file.close()
        for tracker in self.trackers:
            tracker.close()


class NoLog:
    """The log of a worker that is not rank 0: nothing is written."""

    def show(self, config: Mapping[str, Any], tasks: Sequence[str], starts: Callable[[], Sequence[int]]) -> None:
        """Drop it."""

    def end(self, evaluations: Evaluations) -> None:
        """Drop it."""

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Drop it."""

    def mark(self, tag: str, count: int, step: int) -> None:
        """Drop it."""

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Drop them."""

    def histograms(self, step: int, histograms: Mapping[str, Sequence[float]]) -> None:
        """Drop them."""

    def clock(self, step: int, scalars: dict[str, float]) -> None:
        """Drop them."""

    def evaluation(self, evaluations: Evaluations) -> None:
        """Drop it."""

    def tensor(self, evaluations: Evaluations) -> None:
        """Drop it."""

    def sizes(self) -> dict[str, int]:
        """Nothing was written."""
        return {}

    def close(self) -> None:
        """There is nothing to close."""
