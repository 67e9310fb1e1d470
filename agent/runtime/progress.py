"""The progress of a run on the terminal: two lines that are drawn again, or a plain line now and then."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence

_BARS = "▁▂▃▄▅▆▇█"
#: as many evaluations of a task are drawn
_HISTORY = 12


class Progress:
    """Two lines on a terminal: share done, steps per second, time left, task in training; then the last evaluations of
    every task as bars, and the last one as a number. Elsewhere, and where `TERM` is `dumb`, a plain line now and then.

    Args:
        total: environment steps of the whole run.
        start: step that the run starts from.
        quiet: print nothing.
    """

    def __init__(self, total: int, start: int = 0, quiet: bool = False) -> None:
        self.total, self.start, self.quiet = total, start, quiet
        self.live = sys.stderr.isatty() and not quiet and os.environ.get("TERM") != "dumb"
        self.begun = time.perf_counter()
        self.last = 0.0
        self.interval = 0.2 if self.live else 5.0
        self.shown: Mapping[str, float] = {}
        self.history: dict[str, list[float]] = {}

    def rate(self, step: int) -> float:
        """Environment steps per second since the start."""
        return (step - self.start) / max(time.perf_counter() - self.begun, 1e-9)

    def update(self, step: int, task: str, performance: dict[str, float], force: bool = False) -> None:
        """Show the state: share done, steps/s, time left, task in training and the last evaluations of every task."""
        if performance != self.shown:  # another evaluation
            self.shown = performance
            for name, value in performance.items():
                self.history[name] = [*self.history.get(name, []), value][-_HISTORY:]
        now = time.perf_counter()
        if self.quiet or (now - self.last < self.interval and not force):
            return
        self.last = now
        left = (self.total - step) / max(self.rate(step), 1e-9)
        parts = [
            f"{step / self.total:4.0%}  {step:,}/{self.total:,}",
            f"{self.rate(step):,.0f}/s",
            f"{duration(left)} left",
            f"training {task}",
        ]
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            first, second = fit(parts, width), tasks_line(self.history, width)
            sys.stderr.write(f"\r\x1b[K{first}\n\x1b[K{second}\x1b[1A\r")
        else:
            evaluated = "  ".join(f"{name} {value:.2f}" for name, value in performance.items())
            sys.stderr.write("  ".join(parts) + f"  |  {evaluated}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the live lines."""
        if self.live:
            sys.stderr.write("\r\x1b[J")
            sys.stderr.flush()


def duration(seconds: float) -> str:
    """`1:04`, `2:03:04`; beyond 100 days nothing is known."""
    if seconds >= 8_640_000:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def fit(parts: Sequence[str], width: int) -> str:
    """As many of the parts as there is room for; the last one that is there may be cut."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if len(longer) > width:
            return line if len(line) + 12 > width else longer[: width - 1] + "…"
        line = longer
    return line


def sparkline(values: Sequence[float]) -> str:
    """Performances as bars: 0 and less is the lowest, 1 and more the highest; a blank where there is none."""
    top = len(_BARS) - 1
    return "".join(_BARS[round(min(max(v, 0.0), 1.0) * top)] if v == v else " " for v in values)


def tasks_line(history: Mapping[str, Sequence[float]], width: int) -> str:
    """Every task with its bars and its last performance, as far as there is room; then how many more there are.

    Names and bars become shorter before a task is left out.
    """
    for bars, letters in ((_HISTORY, 100), (8, 12), (4, 10), (0, 8)):
        parts = [_task(name, values, bars, letters) for name, values in history.items()]
        if len("  ".join(parts)) <= width:
            return "  ".join(parts)
    shown: list[str] = []
    for count, part in enumerate(parts):
        more = f"+{len(parts) - count - 1}" if count + 1 < len(parts) else ""
        if len("  ".join([*shown, part, *([more] if more else [])])) > width:
            break
        shown.append(part)
    return "  ".join([*shown, f"+{len(parts) - len(shown)}"])


def _task(name: str, values: Sequence[float], bars: int, letters: int) -> str:
    short = name if len(name) <= letters else name[: letters - 1] + "…"
    drawn = f" {sparkline(values[-bars:])}" if bars else ""
    last = f"{values[-1] + 0.0:.2f}".replace("-0.00", "0.00") if values[-1] == values[-1] else "–"
    return f"{short}{drawn} {last}"
