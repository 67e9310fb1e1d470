"""What a comparison comes to: a table, CSV, JSON and Markdown of its rows, over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.table import Table

from lifelong.agent.compare import Run, label
from lifelong.agent.files import write, write_json
from lifelong.agent.report import page
from lifelong.agent.report.runs import Group, RunData, forward_transfer, load_runs, number
from lifelong.agent.report.statistics import interquartile_mean, interval, permutation_test
from lifelong.agent.report.tables import comparison_cells, number_text, runs_csv, scored
from lifelong.agent.runtime.machine import machine, versions
from lifelong.agent.runtime.metrics import LEARNED_FROM

#: what is said of every row, and how it is read off a run: see docs/metrics.md
COLUMNS = ("average_performance", "learned", "forgetting", "dormant_units", "steps_per_second", "strategy_mib")


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

    @cached_property
    def groups(self) -> list[Group]:
        """The rows as reports know them, in the order in which they were asked for."""
        return [Group(runs[0].config_name, short(" ".join(row)), runs) for row, runs in self.arms.items()]

    def table(self) -> Table:
        """For the terminal: see `tables.comparison`."""
        runs = [data for _, data in self.runs]
        return comparison_cells(runs, self.references, self.groups, True).without_first().rich()

    def csv(self) -> str:
        """One line a task of every run; the row is its overrides."""
        head, *lines = runs_csv([data for _, data in self.runs]).splitlines()
        rows = [label(run.row) for run, data in self.runs for _ in data.summary["tasks"]]
        return "\n".join([f"row,{head}", *(f"{_quoted(r)},{line}" for r, line in zip(rows, lines, strict=True))]) + "\n"

    def write(self, folder: Path) -> Path:
        """Write the page and, beside it, `comparison.csv`, `.json`, `.md` and `.tex`.

        Returns:
            Path of the page.
        """
        write(folder / "comparison.csv", self.csv())
        write_json(folder / "comparison.json", self.json())
        write(folder / "comparison.md", self.markdown())
        write(folder / "comparison.tex", self.latex())
        runs = [*(data for _, data in self.runs), *self.references]
        return page.html(runs, folder, self.groups, f"{Path(self.config).stem}: {len(self.arms)} rows compared")

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
            "interquartile_mean": interquartile_mean([number(t["final"]) for s in summaries for t in s["tasks"]]),
            "against_first": self.against_first(runs),
            "average_performance_interval": interval(found["average_performance"]),
            "env_steps": summaries[0]["env_steps"],
        }

    def against_first(self, runs: Sequence[RunData]) -> dict[str, float | None] | None:
        """Difference of the mean average performance to that of the first row, and its p, None with one seed; None for
        the first row."""
        first = next(iter(self.arms.values()))
        if runs is first:
            return None
        one, other = ([measured(run, "average_performance") for run in row] for row in (runs, first))
        p = permutation_test(one, other)
        return {"difference": fmean(one) - fmean(other), "p": None if math.isnan(p) else p}

    def markdown(self) -> str:
        """The rows as a table of Markdown, best average first; see docs/metrics.md."""
        return markdown([self.arm(row, runs) for row, runs in self.arms.items()])

    def latex(self) -> str:
        """The same for LaTeX, with the package booktabs."""
        return latex([self.arm(row, runs) for row, runs in self.arms.items()])


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


def cells(arms: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Rows as `Comparison.json` gives them, below their heads: means over seeds, best average first."""
    arms = sorted(arms, key=lambda arm: -fmean(arm["average_performance"]))
    transfer = any("forward_transfer_auc" in arm for arm in arms)
    heads = ["", "seeds", "average (95 %)", "against the first", "learned", "forgetting"]
    heads += [*(["forward transfer"] if transfer else []), "never learned", "dormant units", "steps/s", "memory, MiB"]
    lines = [heads]
    for arm in arms:
        low, high = arm["average_performance_interval"]
        lines.append(
            [
                short(arm["variant"]),
                str(len(arm["average_performance"])),
                f"{_mean(arm, 'average_performance')} ({number_text(low)} to {number_text(high)})",
                _against(arm),
                _mean(arm, "learned"),
                _mean(arm, "forgetting"),
                *([_mean(arm, "forward_transfer_auc")] if transfer else []),
                f"{sum(arm['never_learned'])} of {len(arm['tasks']) * len(arm['never_learned'])}",
                _mean(arm, "dormant_units"),
                f"{median(arm['steps_per_second']):,.0f}",
                f"{fmean(arm['strategy_mib']):.1f}",
            ]
        )
    return lines


def markdown(arms: Iterable[Mapping[str, Any]]) -> str:
    """`cells` as a table of Markdown."""
    heads, *rows = cells(arms)
    lines = [heads, ["---"] * len(heads), *([f"`{name}`", *rest] for name, *rest in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(arms: Iterable[Mapping[str, Any]]) -> str:
    """`cells` as a table of LaTeX, with the package booktabs."""
    heads, *rows = cells(arms)
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (heads, *rows)]
    columns = "l" + "r" * (len(heads) - 1)
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([%&_#{}$])", r"\\\1", text).replace("–", "--").replace("−", "$-$")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"') else text


def _against(arm: Mapping[str, Any]) -> str:
    found = arm.get("against_first")
    if not found:
        return "–"
    p = "" if found["p"] is None else f" (p {found['p']:.2f})"
    return f"{found['difference']:+.2f}{p}"


def short(variant: str) -> str:
    """A row without what every one begins with."""
    return variant.replace("strategy=", "", 1) or "as it is"


def _mean(arm: Mapping[str, Any], key: str) -> str:
    return number_text(fmean(arm[key]))
