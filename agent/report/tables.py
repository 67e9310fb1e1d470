"""Tables of runs and of comparisons, for the terminal and for HTML."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lifelong.agent.report.runs import RunData, group_runs, median_of, number, task_names


@dataclass
class Cells:
    """A table as text, for the terminal and for HTML: the first `left` columns are names, the others numbers.

    Args:
        columns: headings.
        rows: the body.
        totals: rows set apart below the body.
        left: number of name columns.
    """

    columns: list[str]
    rows: list[list[str]]
    totals: list[list[str]]
    left: int

    def without_first(self) -> Cells:
        """The table without its first column."""
        rows, totals = [row[1:] for row in self.rows], [row[1:] for row in self.totals]
        return Cells(self.columns[1:], rows, totals, self.left - 1)

    def rich(self) -> Table:
        """The table for the terminal."""
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for index, column in enumerate(self.columns):
            justify: Literal["left", "right"] = "left" if index < self.left else "right"
            heading = Text(column.replace(" ", "\n").replace("-", "-\n"))  # narrow, so that 80 columns go far
            table.add_column(heading, justify=justify, overflow="fold", vertical="bottom")
        for row in self.rows:
            table.add_row(*map(Text, row))
        table.add_section()
        for row in self.totals:
            table.add_row(*map(Text, row))
        return table


def console() -> Console:
    """The console that tables are printed on: the terminal, or 120 columns where there is none."""
    return Console(width=None if sys.stdout.isatty() else 120)


def table(summary: Mapping[str, Any]) -> Table:
    """One run: task, performance when it was learned and at the end, share kept; average performance and forgetting."""
    return run_cells(summary).rich()


def comparison(runs: Sequence[RunData]) -> Table:
    """One row per config name and strategies: median (min..max) over seeds, best average performance first.

    A task that a config does not have shows as a dash.
    """
    return comparison_cells(runs).rich()


def run_cells(summary: Mapping[str, Any]) -> Cells:
    """One run; see `table`."""
    rows = []
    for task in summary["tasks"]:
        learned, final = number(task["learned"]), number(task["final"])
        kept = f"{final / learned:.0%}" if learned > 0 and math.isfinite(final) else "–"
        rows.append([str(task["name"]), number_text(learned), number_text(final), kept])
    totals = [
        ["average performance", "", number_text(number(summary["average_performance"])), ""],
        ["forgetting", "", number_text(number(summary["forgetting"])), ""],
    ]
    return Cells(["task", "learned", "final", "kept"], rows, totals, left=1)


def comparison_cells(runs: Sequence[RunData]) -> Cells:
    """One row per config name and strategies; see `comparison`."""
    tasks = task_names(runs)
    rows = [
        [
            group.config,
            group.label,
            str(group.seeds),
            _text_range(group.values("average_performance")),
            number_text(median_of(group.values("forgetting"))),
            *(number_text(median_of(group.task_values(task, "final"))) for task in tasks),
            f"{median_of(group.values('steps_per_second')):,.0f}",
        ]
        for group in group_runs(runs)
    ]
    columns = ["config", "strategy", "seeds", "average performance", "forgetting", *tasks, "steps/s"]
    return Cells(columns, rows, [], left=2)


def number_text(value: float) -> str:
    """Two decimals; a dash for what is undefined."""
    return "–" if math.isnan(value) else f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def _text_range(values: Sequence[float]) -> str:
    """`median (min..max)`; only the number itself if there is one run."""
    defined = [value for value in values if not math.isnan(value)]
    if len(defined) < 2:
        return number_text(median_of(defined))
    return f"{number_text(median(defined))} ({number_text(min(defined))}..{number_text(max(defined))})"
