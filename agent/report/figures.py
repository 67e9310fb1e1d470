"""What the charts of a page show, read off the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lifelong.agent.report.colours import places
from lifelong.agent.report.runs import Group, RunData, median_of, task_names
from lifelong.agent.report.svg import Bar, Line, Stretch, bar_chart, line_chart, matrix_chart
from lifelong.agent.report.tables import scored
from lifelong.agent.runtime.metrics import LEARNED_FROM, average_performance_over_time

#: what of the log has a chart of its own: heading -> pattern of the names
CURVES = {
    "dormant units, share": "plasticity/dormant_units",
    "effective rank of the memory's output": "plasticity/effective_rank",
    "weights, root mean square": "plasticity/weight_norm",
    "gradient norm before clipping": "gradient/norm",
    "sequences in replay": "replay_size",
    "age of what is replayed, steps": "replay_age",
}
#: as many points of a curve are drawn
_POINTS = 400

#: steps and values of a curve, and how it is read off a run; None if it has none
Points = tuple[Sequence[float], Sequence[float]]
Curve = Callable[[RunData], Points | None]


def figures(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The charts of one config: {chapter: charts}, a line or a bar for every group."""
    runs = [run for group in groups for run in group.runs]
    tasks, colours = task_names(runs), places([group.label for group in groups])
    stretches = _stretches(runs)
    changes = sorted({change["step"] for run in runs for change in run.summary.get("changes", [])})

    def chart(title: str, curve: Curve, unit: bool) -> str:
        lines = [_line(group, place, curve) for group, place in zip(groups, colours, strict=True)]
        there = [line for line in lines if line is not None]
        return line_chart(title, there, stretches, changes, unit) if there else ""

    bars = [_bar(group, place, tasks) for group, place in zip(groups, colours, strict=True)]
    each = [chart(task, partial(_performance, task), True) for task in tasks] if len(tasks) > 1 else []
    found = {
        "What was learned": [
            chart("average over all tasks", _average, True),
            bar_chart("each task", tasks, bars),
            *each,
        ],
        "Evaluation matrix": [matrix_chart(*_matrix(group)) for group in groups],
        "Inside": [chart(title, partial(_logged, name), False) for title, name in CURVES.items()],
    }
    return {title: [drawn for drawn in charts if drawn] for title, charts in found.items()}


def run_figure(run: RunData) -> str:
    """Every task of one run over its steps."""
    performance = run.evaluations.performance()
    lines = [
        Line(task, index, run.evaluations.steps, performance[:, index].tolist())
        for index, task in enumerate(run.evaluations.tasks)
    ]
    changes = sorted({change["step"] for change in run.summary.get("changes", [])})
    return line_chart("performance of every task", lines, _stretches([run]), changes, True)


def _stretches(runs: Sequence[RunData]) -> list[Stretch]:
    """What is trained when, if it is the same in all runs."""
    plans = [run.summary.get("segments", []) for run in runs]
    if not plans or any(plan != plans[0] for plan in plans):
        return []
    tasks = runs[0].evaluations.tasks

    def name(segment: Mapping[str, Any]) -> str:
        return "all tasks" if segment["task"] is None else tasks[segment["task"]]

    return [Stretch(segment["start"], segment["end"], name(segment)) for segment in plans[0]]


def _line(group: Group, place: int, curve: Curve) -> Line | None:
    """Median over seeds, and the band from the lowest to the highest."""
    curves = [found for run in group.runs if (found := curve(run)) is not None and len(found[0])]
    if not curves:
        return None
    grid = np.array(sorted({float(x) for xs, _ in curves for x in xs}))
    if len(grid) > _POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, _POINTS).astype(int)]
    values = np.stack([np.interp(grid, xs, ys, left=np.nan, right=np.nan) for xs, ys in curves])
    there = ~np.isnan(values).all(0)
    grid, values = grid[there], values[:, there]
    if not len(grid):
        return None
    band = [np.nanmin(values, 0).tolist(), np.nanmax(values, 0).tolist()] if len(curves) > 1 else [None, None]
    return Line(group.label, place, grid.tolist(), np.nanmedian(values, 0).tolist(), *band)


def _average(run: RunData) -> Points:
    return run.evaluations.steps, average_performance_over_time(run.evaluations).tolist()


def _performance(task: str, run: RunData) -> Points | None:
    if task not in run.evaluations.tasks:
        return None
    values = run.evaluations.performance()[:, run.evaluations.tasks.index(task)]
    there = ~np.isnan(values)
    return np.array(run.evaluations.steps)[there].tolist(), values[there].tolist()


def _logged(name: str, run: RunData) -> Points | None:
    """A curve of `metrics.jsonl`: by its whole name, or by the end of that of a strategy."""
    points = [
        (line["step"], value)
        for line in run.rows
        for key, value in line.items()
        if value is not None and (key == name or (key.startswith("strategy/") and key.endswith("/" + name)))
    ]
    return ([step for step, _ in points], [value for _, value in points]) if points else None


def _bar(group: Group, place: int, tasks: Sequence[str]) -> Bar:
    final, learned = ([group.task_values(task, key) for task in tasks] for key in ("final", "learned"))
    medians = [median_of(values) for values in learned]
    unknown = {t["name"] for run in group.runs for t in run.summary["tasks"] if not scored(t)}
    return Bar(
        group.label,
        place,
        [median_of(values) for values in final],
        [min(values, default=np.nan) for values in final],
        [max(values, default=np.nan) for values in final],
        medians,
        [
            " (never learned)" if value < LEARNED_FROM and task not in unknown else ""
            for task, value in zip(tasks, medians, strict=True)
        ],
    )


def _matrix(group: Group) -> tuple[str, list[str], list[int], np.ndarray, list[int]]:
    """Median over those seeds that were evaluated at the same steps as the first."""
    first = group.runs[0].evaluations
    alike = [run.evaluations for run in group.runs if run.evaluations.steps == first.steps]
    values = np.median(np.stack([evaluations.performance() for evaluations in alike]), 0)
    starts = [int(stretch.start) for stretch in _stretches(group.runs[:1])]
    return group.label, first.tasks, first.steps, values, starts
