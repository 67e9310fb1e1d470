"""What a comparison comes to: a table, CSV, JSON and Markdown of its rows, over seeds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.table import Table

from lifelong.agent.compare import Run, label
from lifelong.agent.report.runs import RunData, forward_transfer, load_runs, number
from lifelong.agent.report.tables import comparison_cells, number_text, scored
from lifelong.agent.runtime.machine import machine, versions
from lifelong.agent.runtime.metrics import LEARNED_FROM

#: resamples of an interval, and the share of them that lies within
RESAMPLES, WITHIN = 10_000, 0.95
#: what is said of every row, and how it is read off a run: see docs/metrics.md
COLUMNS = ("average_performance", "learned", "forgetting", "dormant_units", "steps_per_second", "strategy_mib")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean, 95 % of 10,000 resamples (Efron & Tibshirani 1993, chapter 13).

    Of one value it is that value; of nothing, or of what is not a number, not a number.
    """
    if not values:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).choice(np.asarray(values, float), (RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(-1), [(1 - WITHIN) / 2, (1 + WITHIN) / 2])
    return float(low), float(high)


class Comparison:
    """The rows of a finished comparison.

    Args:
        config: what was compared, a bundled name or a path.
        runs: its runs.
        references: runs on every task alone, if there are any.
    """

    def __init__(self, config: str, runs: Sequence[Run], references: Sequence[Run] = ()) -> None:
        self.config = config
        self.runs = list(zip(runs, load_runs([run.folder for run in runs]), strict=True))
        self.references = load_runs([run.folder for run in references]) if references else []

    @cached_property
    def arms(self) -> dict[tuple[str, ...], list[RunData]]:
        """The runs of every row, in the order of their seeds."""
        found: dict[tuple[str, ...], list[RunData]] = {}
        for run, data in self.runs:
            found.setdefault(run.row, []).append(data)
        return found

    def table(self) -> Table:
        """For the terminal: see `tables.comparison`."""
        return comparison_cells([data for _, data in self.runs], self.references).rich()

    def csv(self) -> str:
        """One line a task of every run."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        totals = ("average_performance", "forgetting", "steps_per_second")
        writer.writerow(["row", "seed", "task", "learned", "final", *totals])
        for run, data in self.runs:
            for task in data.summary["tasks"]:
                of_run = [data.summary[key] for key in totals]
                writer.writerow([label(run.row), run.seed, task["name"], task["learned"], task["final"], *of_run])
        return text.getvalue()

    def json(self) -> dict[str, Any]:
        """Every row with the numbers of its runs, with machine and versions."""
        return {
            "benchmark": "compare",
            "config": self.config,
            "date": date.today().isoformat(),
            "arms": [self.arm(row, runs) for row, runs in self.arms.items()],
            "machine": machine("cpu"),
            "versions": versions(),
        }

    def arm(self, row: tuple[str, ...], runs: Sequence[RunData]) -> dict[str, Any]:
        """One row: every task and every number that is said of it, over its runs, and the interval of the average."""
        summaries = [run.summary for run in runs]
        found = {key: [measured(run, key) for run in runs] for key in COLUMNS}
        if self.references:
            found["forward_transfer_auc"] = [forward_transfer(run, self.references) for run in runs]
        return {
            "variant": " ".join(row),
            "tasks": [_task(summaries, index) for index in range(len(summaries[0]["tasks"]))],
            "never_learned": [
                sum(scored(task) and number(task["learned"]) < LEARNED_FROM for task in summary["tasks"])
                for summary in summaries
            ],
            **found,
            "average_performance_interval": interval(found["average_performance"]),
            "env_steps": summaries[0]["env_steps"],
        }

    def markdown(self) -> str:
        """The rows as a table of Markdown, best average first; see docs/metrics.md."""
        return markdown([self.arm(row, runs) for row, runs in self.arms.items()])


def measured(run: RunData, key: str) -> float:
    """A number of a run: `learned` is the mean over tasks, `dormant_units` that of the last evaluation."""
    if key == "learned":
        return fmean(number(task["learned"]) for task in run.summary["tasks"])
    if key == "dormant_units":
        name = f"plasticity/{key}"
        return next((number(line[name]) for line in reversed(run.rows) if name in line), math.nan)
    return number(run.summary.get(key))


def _task(summaries: Sequence[Mapping[str, Any]], index: int) -> dict[str, Any]:
    tasks = [summary["tasks"][index] for summary in summaries]
    learned, final = ([task[key] for task in tasks] for key in ("learned", "final"))
    medians = {"learned_median": median(learned), "final_median": median(final)}
    return {"name": tasks[0]["name"], "learned": learned, "final": final, **medians}


def markdown(arms: Iterable[Mapping[str, Any]]) -> str:
    """Rows as `Comparison.json` gives them, as a table of Markdown: means over seeds, best average first."""
    arms = sorted(arms, key=lambda arm: -fmean(arm["average_performance"]))
    transfer = any("forward_transfer_auc" in arm for arm in arms)
    heads = ["", "seeds", "average (95 %)", "learned", "forgetting", *(["forward transfer"] if transfer else [])]
    heads += ["never learned", "dormant units", "steps/s", "memory, MiB"]
    lines = [heads, ["---"] * len(heads)]
    for arm in arms:
        low, high = arm["average_performance_interval"]
        lines.append(
            [
                f"`{_short(arm['variant'])}`",
                str(len(arm["average_performance"])),
                f"{_mean(arm, 'average_performance')} ({number_text(low)} to {number_text(high)})",
                _mean(arm, "learned"),
                _mean(arm, "forgetting"),
                *([_mean(arm, "forward_transfer_auc")] if transfer else []),
                f"{sum(arm['never_learned'])} of {len(arm['tasks']) * len(arm['never_learned'])}",
                _mean(arm, "dormant_units"),
                f"{median(arm['steps_per_second']):,.0f}",
                f"{fmean(arm['strategy_mib']):.1f}",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _short(variant: str) -> str:
    """A row without what every one begins with."""
    return variant.replace("strategy=", "", 1) or "as it is"


def _mean(arm: Mapping[str, Any], key: str) -> str:
    return number_text(fmean(arm[key]))
