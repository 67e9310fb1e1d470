"""What a run writes while it trains: TensorBoard events, metrics.jsonl, timing.jsonl, and a line on the terminal.

`metrics.jsonl` holds nothing that depends on the clock, so it is the same, byte for byte, in a run that was killed and
resumed; everything that does depend on it goes to `timing.jsonl`. The x-axis of everything is environment steps.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path


class RunLog:
    """The log files of one run folder.

    Args:
        folder: run folder, which exists.
        offset: bytes of metrics.jsonl that belong to the resumed checkpoint; the rest is cut off.
        step: environment step that is resumed; later TensorBoard events are hidden.
    """

    def __init__(self, folder: Path, offset: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports slowly, and only runs need it

        self.path = folder / "metrics.jsonl"
        self.path.touch()
        with open(self.path, "r+b") as file:
            file.truncate(offset)
        self.metrics = open(self.path, "ab")  # noqa: SIM115 (open as long as the run)
        self.timing = open(folder / "timing.jsonl", "a")  # noqa: SIM115
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """A text page in TensorBoard."""
        self.writer.add_text(tag, text, step)  # type: ignore[no-untyped-call]

    def mark(self, tag: str, count: int, step: int) -> None:
        """A point of TensorBoard's alone, that shows when something happened."""
        self._tensorboard(step, {tag: float(count)})

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl and one point of every scalar in TensorBoard."""
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self.metrics.write((json.dumps({"step": step, **finite}) + "\n").encode())
        self._tensorboard(step, scalars)

    def clock(self, step: int, scalars: dict[str, float], once: dict[str, float] | None = None) -> None:
        """The same for figures that depend on the clock; `once` goes to timing.jsonl alone, as its curves were dots."""
        self.timing.write(json.dumps({"step": step, "time": time.time(), **scalars, **(once or {})}) + "\n")
        self._tensorboard(step, scalars)

    def _tensorboard(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def offset(self) -> int:
        """Bytes of metrics.jsonl written so far, for the checkpoint; everything before it is on disk."""
        self.flush()
        return self.metrics.tell()

    def flush(self) -> None:
        """Push everything to the files."""
        self.metrics.flush()
        self.timing.flush()
        self.writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self.metrics.close()
        self.timing.close()
        self.writer.close()  # type: ignore[no-untyped-call]


class NoLog:
    """The log of a worker that is not rank 0: nothing is written."""

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Drop it."""

    def mark(self, tag: str, count: int, step: int) -> None:
        """Drop it."""

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Drop them."""

    def clock(self, step: int, scalars: dict[str, float]) -> None:
        """Drop them."""

    def offset(self) -> int:
        """Nothing was written."""
        return 0

    def close(self) -> None:
        """There is nothing to close."""


class Progress:
    """The progress of a run: one line that is redrawn on a terminal, a plain line now and then otherwise.

    Args:
        total: environment steps of the whole run.
        start: step that the run starts from.
        quiet: print nothing.
    """

    def __init__(self, total: int, start: int = 0, quiet: bool = False) -> None:
        self.total, self.start, self.quiet = total, start, quiet
        self.live = sys.stderr.isatty() and not quiet
        self.begun = time.perf_counter()
        self.last = 0.0
        self.interval = 0.2 if self.live else 5.0

    def rate(self, step: int) -> float:
        """Environment steps per second since the start."""
        return (step - self.start) / max(time.perf_counter() - self.begun, 1e-9)

    def update(self, step: int, task: str, performance: dict[str, float], force: bool = False) -> None:
        """Show the state: share done, steps/s, time left, task in training and the last evaluation of every task."""
        now = time.perf_counter()
        if self.quiet or (now - self.last < self.interval and not force):
            return
        self.last = now
        left = (self.total - step) / max(self.rate(step), 1e-9)
        evaluated = "  ".join(f"{name} {value:.2f}" for name, value in performance.items())
        line = (
            f"{step / self.total:4.0%}  {step:,}/{self.total:,} steps  {self.rate(step):,.0f}/s  "
            f"{int(left) // 60}:{int(left) % 60:02d} left  training {task}  |  {evaluated}"
        )
        if self.live:
            import shutil

            width = shutil.get_terminal_size().columns
            sys.stderr.write("\r\x1b[K" + line[: width - 1])
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the live line."""
        if self.live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
