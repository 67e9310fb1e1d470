"""The figure of a recipe: curves where there are runs, images or curves of a script, else a dot for every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lifelong.agent.compare import Run
from lifelong.agent.published import Recipe
from lifelong.agent.report.plots import INK, label_ends, line_of, new_figure, over_steps, save_figure, strip_axes
from lifelong.agent.report.published import by_row
from lifelong.agent.report.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: as many rows have a panel each, with a line for each of as many tasks; of more there is one panel, with a line a row
PANELS, TASKS = 3, 12
#: performance below which nothing is drawn: an untrained prediction may be worse than useless by far
FLOOR = -0.3


def figure(recipe: Recipe, found: Mapping[str, Any], runs: Sequence[Run], path: Path) -> None:
    """Write the PNG: mean over seeds and from the least to the most, over environment steps or over what a script has
    as x. Where a row has no runs at hand, there is a dot for every seed instead, and a mark at what was published."""
    rows = found["rows"]
    if "image" in rows[0]:
        _images(recipe, rows, path)
    elif "curve" in rows[0]:
        _drawn_lines(recipe, rows, path)
    elif recipe.script or any("from" in row for row in rows):
        _dots(recipe, rows, path)
    elif next(iter(recipe.measures)).endswith("return") or "return_over_run" in recipe.measures:
        _lived(recipe, by_row(recipe, found["budget"], runs), path)
    else:
        _performance(recipe, by_row(recipe, found["budget"], runs), path)


def _performance(recipe: Recipe, rows: Mapping[str, list[RunData]], path: Path) -> None:
    tasks = next(iter(rows.values()))[0].evaluations.tasks
    lines = {label: _curves(made) for label, made in rows.items()}
    if len(tasks) == 1 or len(rows) > PANELS or len(tasks) > TASKS:
        title = recipe.title if len(tasks) == 1 else f"{recipe.title}: average over tasks"
        panels = {title: {label: (steps, curves.mean(-1)) for label, (steps, curves) in lines.items()}}
    else:
        panels = {
            label: {task: (steps, curves[:, :, i]) for i, task in enumerate(tasks)}
            for label, (steps, curves) in lines.items()
        }
    drawn = new_figure(7.5, 3.4 * len(panels))
    for index, (title, held) in enumerate(panels.items()):
        axes = drawn.add_subplot(len(panels), 1, index + 1)
        over_steps(axes, title, [(steps.tolist(), curves.T) for steps, curves in held.values()])
        axes.set_ylim(bottom=max(axes.get_ylim()[0], FLOOR))
        _lines(axes, held)
    save_figure(drawn, path)


def _curves(made: Sequence[RunData]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [points] and performance [seeds, points, tasks]; all runs of a row are evaluated at the same steps."""
    return np.array(made[0].evaluations.steps), np.stack([run.evaluations.performance() for run in made])


def _lived(recipe: Recipe, rows: Mapping[str, list[RunData]], path: Path) -> None:
    """The return as it was lived, in at most 40 bins of the lines of the log."""
    held = {}
    for label, made in rows.items():
        key = "continual/online_return"
        logged = [np.array([(row["step"], row[key]) for row in run.rows if key in row]) for run in made]
        length = min(map(len, logged))
        bins = np.array_split(np.arange(length), min(40, length))
        steps = np.array([logged[0][part, 0].mean() for part in bins])
        held[label] = steps, np.array([[one[part, 1].mean() for part in bins] for one in logged])
    drawn = new_figure(7.5, 3.4)
    axes = drawn.add_subplot()
    over_steps(axes, recipe.title, [(steps.tolist(), curves.T) for steps, curves in held.values()], scored=False)
    axes.set_ylabel("return as it was lived")
    _lines(axes, held)
    save_figure(drawn, path)


def _lines(axes: Axes, held: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for order, (x, curves) in enumerate(held.values()):
        line = line_of(order)
        axes.fill_between(x, curves.min(0), curves.max(0), color=line["color"], alpha=0.15, linewidth=0)
        axes.plot(x, curves.mean(0), **line)
    label_ends(axes, list(held), [float(curves[:, -1].mean()) for _, curves in held.values()], points_high=72 * 2.6)


def _drawn_lines(recipe: Recipe, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A line for every row; every seed of it pale behind, since a script's curves need not have the same x."""
    drawn = new_figure(7.5, 3.4)
    axes = drawn.add_subplot()
    ends = []
    for order, row in enumerate(rows):
        line = line_of(order)
        xs, ys = zip(*((np.array(x, float), np.array(y, float)) for x, y in row["curve"]), strict=True)
        alike = all(np.array_equal(x, xs[0]) for x in xs)
        if len(xs) > 1 or not alike:
            for x, y in zip(xs, ys, strict=True):
                axes.plot(x, y, **{**line, "linewidth": 0.8, "alpha": 0.45})
        if alike:
            axes.plot(xs[0], np.mean(ys, axis=0), **line)
        ends.append(float(np.mean([y[-1] for y in ys])))
    log = recipe.axes.get("log", "")
    if "x" in log:
        axes.set_xscale("log")
    elif max(float(x[-1]) for row in rows for x, _ in row["curve"]) >= 10_000:
        from matplotlib.ticker import EngFormatter

        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if "y" in log:
        axes.set_yscale("log")
    _dress(axes, recipe, grid="y")
    axes.set_title(recipe.title, fontsize=10, loc="left", color=INK, pad=8)
    axes.margins(x=0)
    if "y" in log:  # the margin for labels is linear
        axes.legend(
            [axes.plot([], [], **line_of(order))[0] for order in range(len(rows))],
            [row["label"] for row in rows],
            frameon=False,
            fontsize=9,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )
    else:
        label_ends(axes, [row["label"] for row in rows], ends, points_high=72 * 2.6)
    save_figure(drawn, path)


def _images(recipe: Recipe, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The image of the first seed of every row, side by side, in one scale; `axes.extent` has its edges."""
    images = [np.array(row["image"][0], float) for row in rows]
    low, high = min(float(np.nanmin(x)) for x in images), max(float(np.nanmax(x)) for x in images)
    drawn = new_figure(4.2 * len(rows) + 0.8, 4.2)
    panels = [drawn.add_subplot(1, len(rows), index + 1) for index in range(len(rows))]
    left, right, bottom, top = map(float, recipe.axes.get("extent", "0 1 0 1").split())
    extent = (left, right, bottom, top)
    for axes, image, row in zip(panels, images, rows, strict=True):
        shown = axes.imshow(image, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high, extent=extent)
        _dress(axes, recipe, grid="")
        axes.locator_params(nbins=5)
        axes.set_title(row["label"], fontsize=10, loc="left", color=INK)
    drawn.colorbar(shown, ax=panels).outline.set_visible(False)
    save_figure(drawn, path)


def _dots(recipe: Recipe, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each of the first three measures: a dot a seed, a bar at the mean, a diamond where published."""
    names = list(recipe.measures)[:3]
    drawn = new_figure(1.8 + 3.0 * len(names), 1.3 + 0.34 * len(rows))
    for index, name in enumerate(names):
        axes = drawn.add_subplot(1, len(names), index + 1)
        for at, row in enumerate(rows):
            values = [x for x in row["measures"][name] if x is not None]
            color = line_of(0)["color"]
            axes.plot(values, [at] * len(values), "o", color=color, alpha=0.5, markersize=6, markeredgewidth=0)
            if values:
                axes.plot([float(np.mean(values))], [at], "|", color=color, markersize=15, markeredgewidth=2.2)
            target = recipe.targets.get(row["label"], {}).get(name)
            if target is not None:
                axes.plot([target], [at], "D", color=INK, fillstyle="none", markersize=7)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows] if index == 0 else [""] * len(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _dress(axes, recipe, grid="x")
        axes.set_ylabel("")
        axes.set_xlabel(recipe.measures[name])
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
        axes.spines["bottom"].set(visible=True, color=INK, linewidth=0.8)
    marks = "dot: a seed, bar: mean" + (", diamond: published" if recipe.targets else "")
    drawn.set_layout_engine("constrained", w_pad=0.2)
    drawn.suptitle(f"{recipe.title}  ({marks})", fontsize=10, x=0.01, ha="left", color=INK)
    save_figure(drawn, path)


def _dress(axes: Axes, recipe: Recipe, grid: str) -> None:
    strip_axes(axes, grid=grid or "y")
    if not grid:
        axes.grid(False)
    axes.set_xlabel(recipe.axes.get("x", ""))
    axes.set_ylabel(recipe.axes.get("y", ""))
