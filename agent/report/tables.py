"""Tables of runs and of comparisons, for the terminal and for HTML."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lifelong.agent.report.runs import Group, RunData, forward_transfer, group_runs, median_of, number, task_names
from lifelong.agent.report.statistics import permutation_test
from lifelong.agent.runtime.metrics import LEARNED_FROM, forgetting_max, was_learned

#: stands where a number would tell of a task what it never had
NEVER = "never learned"
#: of tasks of which nobody said what a useless and a solved policy get
NO_SCORE = "no score: returns"
#: the numbers below the table of a run, as far as its summary has them
TOTALS = ("average_performance", "forgetting", "forgetting_max")


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

    Of every task stands the performance when it was learned and the one at the end. A task that a config does not have
    shows as a dash.
    """
    return comparison_cells(runs, runs).rich()


def run_cells(summary: Mapping[str, Any]) -> Cells:
    """One run; see `table`. Instead of the share kept of a task that was never learned stands that it was not; of a
    task without a score the returns are shown, of which no share can be kept."""
    rows, never = [], 0
    for task in summary["tasks"]:
        learned, final = number(task["learned"]), number(task["final"])
        kept = f"{final / learned:.0%}" if was_learned(learned) and math.isfinite(final) else "–"
        if not scored(task):
            kept = NO_SCORE
        elif learned < LEARNED_FROM:
            kept, never = NEVER, never + 1
        rows.append([str(task["name"]), number_text(learned), number_text(final), kept])
    totals = [
        [name.replace("_", " "), "", number_text(number(summary[name])), ""] for name in TOTALS if name in summary
    ]
    if never:
        totals.append([NEVER, "", f"{never} of {len(rows)}", ""])
    return Cells(["task", "learned", "final", "kept"], rows, totals, left=1)


def scored(task: Mapping[str, Any]) -> bool:
    """Whether the score of a task of a summary is known; it was always taken to be, in older ones."""
    return bool(task.get("scored", True))


def comparison_cells(
    runs: Sequence[RunData],
    references: Sequence[RunData] = (),
    groups: Sequence[Group] | None = None,
    against_first: bool = False,
) -> Cells:
    """One row per config name and strategies, or per group if they are given; see `comparison`.

    Of every task stands the performance when it was learned and at the end. There is a column for forward transfer if
    `references`, runs on a single task, are there for all tasks of some row; and one for the difference to the first
    row with `against_first`.
    """
    tasks, groups = task_names(runs), group_runs(runs) if groups is None else groups
    firsts = {group.config: group for group in reversed(groups)}
    transfers = [[forward_transfer(run, references) for run in group.runs] for group in groups]
    shown = any(not math.isnan(value) for values in transfers for value in values)
    rows = [
        [
            group.config,
            group.label,
            str(group.seeds),
            _text_range(group.values("average_performance")),
            *([_against(group, firsts[group.config])] if against_first else []),
            number_text(median_of(group.values("forgetting"))),
            number_text(median_of(forgetting_max(run.evaluations) for run in group.runs)),
            *([number_text(median_of(transfer))] if shown else []),
            *(_task_text(group, task) for task in tasks),
            f"{median_of(group.values('steps_per_second')):,.0f}",
        ]
        for group, transfer in zip(groups, transfers, strict=True)
    ]
    columns = ["config", "strategy", "seeds", "average performance"]
    columns += [*(["against the first row"] if against_first else []), "forgetting", "forgetting max"]
    columns += [*(["forward transfer"] if shown else []), *tasks, "steps/s"]
    return Cells(columns, rows, [], left=2)


def _against(group: Group, first: Group) -> str:
    """`+0.12 (p 0.10)`: difference of the means, and how likely one as large is if the rows are alike."""
    if group is first:
        return "–"
    one, other = group.values("average_performance"), first.values("average_performance")
    p = permutation_test(one, other)
    difference = fmean(one) - fmean(other)
    return f"{difference:+.2f}" + ("" if math.isnan(p) else f" (p {p:.2f})" if p >= 0.01 else " (p < 0.01)")


def cost_cells(groups: Sequence[Group]) -> Cells:
    """What the rows cost: medians over seeds."""
    rows = []
    for group in groups:
        speed = group.values("steps_per_second")
        minutes = [
            number(run.summary["env_steps"]) / s / 60 if s > 0 else math.nan
            for run, s in zip(group.runs, speed, strict=True)
        ]
        memory = [number(run.summary.get("strategy_mib")) for run in group.runs]
        steps = median_of(group.values("env_steps"))
        cells = [
            f"{steps:,.0f}",
            f"{median_of(speed):,.0f}",
            number_text(median_of(minutes)),
            number_text(median_of(memory)),
        ]
        rows.append([group.label, *cells])
    return Cells(
        ["strategy", "environment steps", "steps/s", "minutes", "memory of the strategies, MiB"], rows, [], left=1
    )


def runs_csv(runs: Sequence[RunData]) -> str:
    """One line a task of every run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    totals = ("average_performance", "forgetting", "steps_per_second")
    writer.writerow(["config", "strategy", "seed", "task", "learned", "final", *totals, "folder"])
    for run in runs:
        for task in run.summary["tasks"]:
            own = [run.config_name, run.strategy, run.summary["seed"], task["name"], task["learned"], task["final"]]
            writer.writerow([*own, *(run.summary[key] for key in totals), run.path])
    return file.getvalue()


def _task_text(group: Group, task: str) -> str:
    """`0.90 → 0.81`: medians of the performance when the task was learned and at the end."""
    learned, final = (median_of(group.task_values(task, key)) for key in ("learned", "final"))
    if math.isnan(learned) and math.isnan(final):
        return "–"
    known = all(scored(each) for run in group.runs for each in run.summary["tasks"] if each["name"] == task)
    return f"{NEVER if known and learned < LEARNED_FROM else number_text(learned)} → {number_text(final)}"


def change_cells(summary: Mapping[str, Any]) -> Cells | None:
    """What was changed while the run was trained, and at which step; None if nothing was."""
    rows = [
        [f"{line['step']:,}", line["kind"], line["key"], _value(line["old"]), _value(line["new"]), line.get("note", "")]
        for line in summary.get("changes", [])
    ]
    return Cells(["at step", "change", "key", "before", "after", "started afresh"], rows, [], left=6) if rows else None


def _value(value: Any) -> str:
    """A value of a config, as short as a table has room for."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 72 else text[:71] + "…"


def number_text(value: float) -> str:
    """Two decimals; a dash for what is undefined."""
    return "–" if math.isnan(value) else f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def _text_range(values: Sequence[float]) -> str:
    """`median (min..max)`; only the number itself if there is one run."""
    defined = [value for value in values if not math.isnan(value)]
    if len(defined) < 2:
        return number_text(median_of(defined))
    return f"{number_text(median(defined))} ({number_text(min(defined))}..{number_text(max(defined))})"
