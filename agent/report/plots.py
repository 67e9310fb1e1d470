"""Plots of runs and of comparisons, as PNG. matplotlib is imported where it is used."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lifelong.agent.files import make_folder, write
from lifelong.agent.report.colours import PALETTE, places
from lifelong.agent.report.runs import Group, RunData, by_config, group_runs, median_of, task_names
from lifelong.agent.runtime import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_STYLES = ("-", "--", ":", "-.")
INK = "#333333"
GRID = "#E3E3E3"
# where it keeps its list of fonts, if the home folder cannot be written, does not matter to who reads a report
logging.getLogger("matplotlib").setLevel(logging.ERROR)


def plot_run(run: RunData, path: Path) -> None:
    """Performance of every task over environment steps; writes a PNG.

    Where the task in training is known, the steps are shaded in its colour and a strip above names it. Dotted lines are
    where the run was changed.
    """
    figure = new_figure(8.6, 4.0)
    axes = figure.add_subplot()
    steps, performance = run.evaluations.steps, run.evaluations.performance()
    title = f"{run.config_name} · {run.strategy} · seed {run.summary['seed']}"
    segments = run.summary.get("segments", [])
    if segments:
        title += "  (strip: task in training)"
    over_steps(axes, title, [(steps, performance)], 22 if segments else 8, all(run.evaluations.scored))
    for segment in segments:
        _shade(axes, segment, run.evaluations.tasks, points_wide=72 * 0.75 * 8.6)
    for step in sorted({change["step"] for change in run.summary.get("changes", [])}):
        axes.axvline(step, color=INK, linewidth=1, linestyle=":")
    for task in range(len(run.evaluations.tasks)):
        axes.plot(steps, performance[:, task], marker="o" if len(steps) <= 40 else "", markersize=3, **line_of(task))
    label_ends(axes, run.evaluations.tasks, performance[-1].tolist(), points_high=72 * 3.0)
    save_figure(figure, path)


def plot_comparison(runs: Sequence[RunData], path: Path) -> None:
    """One row of axes per config name; writes a PNG.

    Left: average performance over environment steps, a line per strategy (median over seeds, band from min to max).
    Right: bars of the final performance per task (median over seeds) with a mark at the performance when learned.
    """
    configs = by_config(runs)
    groups = {name: group_runs(members) for name, members in configs.items()}
    tasks = {name: task_names(members) for name, members in configs.items()}
    heights = [max(4.0, 1.2 + len(tasks[name]) * (0.2 * len(groups[name]) + 0.15)) for name in configs]
    figure = new_figure(12.0, sum(heights))
    grid = figure.add_gridspec(len(configs), 2, width_ratios=(1.35, 1), height_ratios=heights)
    for row, name in enumerate(configs):
        title = f"{name}: average performance over all tasks"
        _plot_average(figure.add_subplot(grid[row, 0]), title, groups[name], 72 * (heights[row] - 1.0))
        _plot_tasks(figure.add_subplot(grid[row, 1]), groups[name], tasks[name])
    save_figure(figure, path)


def _plot_average(axes: Axes, title: str, groups: Sequence[Group], points_high: float) -> None:
    curves = []
    for group in groups:
        grid = sorted({step for run in group.runs for step in run.evaluations.steps})
        values = [
            np.interp(
                grid,
                run.evaluations.steps,
                metrics.average_performance_over_time(run.evaluations),
                left=np.nan,
                right=np.nan,
            )
            for run in group.runs
        ]
        curves.append((grid, np.stack(values, axis=1)))
    over_steps(axes, title, curves)
    colours = places([group.label for group in groups])
    for place, (steps, average) in zip(colours, curves, strict=True):
        line = line_of(place)
        if average.shape[1] > 1:
            low, high = np.nanmin(average, axis=1), np.nanmax(average, axis=1)
            axes.fill_between(steps, low, high, color=line["color"], alpha=0.15, linewidth=0)
        axes.plot(steps, np.nanmedian(average, axis=1), **line)
    ends = [float(np.nanmedian(v[-1])) for _, v in curves]
    label_ends(axes, [group.label for group in groups], ends, points_high, colours)


def _plot_tasks(axes: Axes, groups: Sequence[Group], tasks: Sequence[str]) -> None:
    height = 0.8 / len(groups)
    colours = places([group.label for group in groups])
    for index, group in enumerate(groups):
        at = np.arange(len(tasks)) - 0.4 + (index + 0.5) * height
        final = [median_of(group.task_values(task, "final")) for task in tasks]
        learned = [median_of(group.task_values(task, "learned")) for task in tasks]
        axes.barh(at, final, height=0.86 * height, color=line_of(colours[index])["color"], linewidth=0)
        axes.vlines(learned, at - 0.43 * height, at + 0.43 * height, color=INK, linewidth=2)
    axes.axvline(0, color=INK, linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(low, max(high, 1.02))
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    axes.set_title("each task: bar at the end, mark when learned", fontsize=10, loc="left", color=INK, pad=8)
    axes.set_xlabel("performance (0 useless, 1 solved)")
    strip_axes(axes, grid="x")
    axes.tick_params(axis="y", length=0)


def over_steps(
    axes: Axes,
    title: str,
    curves: Sequence[tuple[Sequence[int], np.ndarray]],
    title_pad: float = 8,
    scored: bool = True,
) -> None:
    """Axes of performance (of returns, where no score is known) over environment steps, wide enough for `curves`."""
    from matplotlib.ticker import EngFormatter

    steps = [step for grid, _ in curves for step in grid]
    low = min(float(np.nanmin(values)) for _, values in curves)
    high = max(float(np.nanmax(values)) for _, values in curves)
    if scored:
        low, high = min(low, 0.0), max(high, 1.0)
    margin = 0.04 * (high - low or 1.0)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(min(0, *steps), max(1, *steps))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(title, fontsize=10, loc="left", color=INK, pad=title_pad)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("performance (0 useless, 1 solved)" if scored else "performance; return where there is no score")
    strip_axes(axes, grid="y")


def _shade(axes: Axes, segment: Mapping[str, Any], tasks: Sequence[str], points_wide: float) -> None:
    """Shade the steps of `segment` in the colour of its task (None: all tasks) and name it above if there is room.

    `points_wide` is the width of the axes in points (1/72 inch); a letter needs about 5.5.
    """
    task, start, end = segment["task"], segment["start"], segment["end"]
    color = GRID if task is None else line_of(task)["color"]
    name = "all tasks" if task is None else tasks[task]
    axes.axvspan(start, end, color=color, alpha=0.10, linewidth=0)
    axes.plot(
        [start, end],
        [1.0, 1.0],
        transform=axes.get_xaxis_transform(),
        color=color,
        linewidth=4,
        clip_on=False,
        solid_capstyle="butt",
    )
    left, right = axes.get_xlim()
    if 5.5 * len(name) < points_wide * (end - start) / (right - left):
        axes.annotate(
            name,
            ((start + end) / 2, 1.0),
            (0, 5),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK if task is None else color,
        )


def label_ends(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    points_high: float,
    colours: Sequence[int] | None = None,
) -> None:
    """Write each label right of the axes at the end of its line, moved apart where they would overlap.

    `points_high` is the height of the axes in points (1/72 inch); a label needs 12. `colours` are places of the
    palette, by default one after the other.
    """
    low, high = axes.get_ylim()
    gap = (high - low) * 12 / points_high
    for index, at in zip(np.argsort(values), _spread(sorted(values), gap, high), strict=True):
        axes.annotate(
            _wrap(labels[index]),
            (1.0, at),
            (6, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=line_of(int(index) if colours is None else colours[index])["color"],
        )


def _spread(values: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending `values` moved so that neighbours are at least `gap` apart and none is above `top`."""

    def downwards(places: Sequence[float], limit: float) -> list[float]:
        moved = []
        for place in reversed(places):
            moved.append(min(place, limit))
            limit = moved[-1] - gap
        return moved[::-1]

    down = downwards(values, math.inf)
    up = [-place for place in downwards([-value for value in reversed(values)], math.inf)][::-1]
    return downwards([(a + b) / 2 for a, b in zip(down, up, strict=True)], top)  # halfway keeps a cluster in its place


def _wrap(label: str) -> str:
    """A label short enough for the margin; the tables have all of it."""
    return label if len(label) <= 34 else label[:33] + "…"


def line_of(index: int) -> dict[str, Any]:
    """Colour and style of line number `index`; styles change when the colours are used up."""
    style = LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)]
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": style, "linewidth": 1.8}


def strip_axes(axes: Axes, grid: str) -> None:
    """Leave only the marks that carry data: no frame, a pale grid in one direction."""
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid == "x" else "y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=9, length=0 if grid == "y" else 3)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches; pyplot and its global state are not touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; the folder is made if it is not there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    make_folder(path.parent)
    write(path, lambda file: figure.savefig(file, dpi=150, format="png", metadata={"Software": None}))
