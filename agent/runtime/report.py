"""Reports on finished runs: tables for the terminal, plots, and one self-contained HTML page.

matplotlib and jinja2 are imported where they are used: a run that only prints its own table pays for neither.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lifelong.agent.errors import ConfigError
from lifelong.agent.runtime import metrics
from lifelong.agent.runtime.metrics import Evaluations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: how deep below a given folder runs are looked for (runs/ -> name -> seed is two)
SEARCH_DEPTH = 3

SUMMARY_KEYS = (
    "config",
    "seed",
    "env_steps",
    "steps_per_second",
    "tasks",
    "average_performance",
    "forgetting",
    "versions",
    "machine",
)

#: settings in which runs of one row of the comparison may differ, besides the strategy's kind (which names the row)
NOT_COMPARED = re.compile(r"(seed|name|log_every)$|(checkpoint|strategy_options)\.|strategy\.\d+\.kind$")

#: Okabe & Ito (2008), readable with every colour blindness; yellow is left out (too pale for a line)
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
LINE_STYLES = ("-", "--", ":", "-.")
INK = "#333333"
GRID = "#E3E3E3"


class ReportError(ConfigError):
    """A run that cannot be reported on, as one sentence (a ValueError; exit 2)."""


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class RunData:
    """One run folder.

    Args:
        path: the folder.
        summary: its `summary.json`.
        evaluations: its `evaluation.npz`.
    """

    path: Path
    summary: dict[str, Any]
    evaluations: Evaluations

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, read when first asked for.

        Raises:
            ReportError: the file is missing or damaged.
        """
        path = self.path / "metrics.jsonl"
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise ReportError(f"cannot read {path}: {error}") from error

    @property
    def config_name(self) -> str:
        """Name of the config."""
        return str(self.summary["config"]["name"])

    @property
    def strategy(self) -> str:
        """Kinds of the strategies in their order: `gpm`, `ewc+clear`."""
        return "+".join(str(part["kind"]) for part in self.summary["config"]["strategy"])


def load_runs(paths: Sequence[Path]) -> list[RunData]:
    """Read runs.

    Args:
        paths: run folders, or folders that hold them at most three levels below.

    Raises:
        ReportError: a path that is or holds no finished run, or a run that is damaged.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ReportError(f"no run at {path}: there is no such folder")
        found = list(_find(path, SEARCH_DEPTH))
        if not found:
            raise ReportError(f"no finished run in {path}: no summary.json there or up to {SEARCH_DEPTH} levels below")
        folders.update((folder.resolve(), None) for folder in found)
    return [_load(folder) for folder in folders]


def _find(folder: Path, depth: int) -> Iterable[Path]:
    """Run folders in `folder`, itself included; nothing inside a run is searched."""
    if (folder / "summary.json").is_file():
        yield folder
    elif depth > 0:
        for child in sorted(child for child in folder.iterdir() if child.is_dir()):
            yield from _find(child, depth - 1)


def _load(folder: Path) -> RunData:
    """Read and check one run folder."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read {path}: {error}") from error
    missing = [key for key in SUMMARY_KEYS if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ReportError(f"{path} is not the summary of a run: {', '.join(missing)} missing")
    if not {"name", "strategy"} <= set(summary["config"]):
        raise ReportError(f"{path} is not the summary of a run: its config has no name or no strategy")
    path = folder / "evaluation.npz"
    if not path.is_file():
        raise ReportError(f"run {folder} has no evaluation.npz")
    try:
        evaluations = Evaluations.load(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ReportError(f"cannot read {path}: {error}") from error
    if not evaluations.steps:
        raise ReportError(f"run {folder} has no evaluation point yet")
    return RunData(folder, summary, evaluations)


# ---- grouping --------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """Runs that differ in their seed only: one row of the comparison.

    Args:
        config: name of the config.
        label: the strategies, and the settings in which this row differs from others with the same strategies.
        runs: the runs.
    """

    config: str
    label: str
    runs: list[RunData]

    def values(self, key: str) -> list[float]:
        """A number of the summary, over runs; NaN where a run has none."""
        return [_number(run.summary[key]) for run in self.runs]

    def task_values(self, task: str, key: str) -> list[float]:
        """A number of one task, over the runs that have this task."""
        return [_number(row[key]) for run in self.runs for row in run.summary["tasks"] if row["name"] == task]

    @property
    def seeds(self) -> int:
        """Number of different seeds."""
        return len({run.summary["seed"] for run in self.runs})


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    """Group runs by config name and strategies, best median average performance first within a config name.

    Runs whose other settings differ (another gradient, another strength) are kept apart, and the label names those
    settings: a median over them would be a median over different experiments.
    """
    named: dict[tuple[str, str], list[RunData]] = {}
    for run in runs:
        named.setdefault((run.config_name, run.strategy), []).append(run)
    groups: dict[tuple[str, str], Group] = {}
    for (config, strategy), members in named.items():
        settings = [_settings(run.summary["config"]) for run in members]
        keys = sorted({key for setting in settings for key in setting})
        differing = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
        for run, setting in zip(members, settings, strict=True):
            extra = [f"{key.removesuffix('.kind')}={setting[key]}" for key in differing if key in setting]
            label = f"{strategy} ({', '.join(extra)})" if extra else strategy
            groups.setdefault((config, label), Group(config, label, [])).runs.append(run)
    return sorted(groups.values(), key=lambda g: (g.config, -_median(g.values("average_performance")), g.label))


def by_config(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Runs per config name, names in order."""
    names = sorted({run.config_name for run in runs})
    return {name: [run for run in runs if run.config_name == name] for name in names}


def _settings(value: Any, prefix: str = "") -> dict[str, str]:
    """The settings of a config that make two runs different experiments, as dotted key -> text."""
    if isinstance(value, (Mapping, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        flat: dict[str, str] = {}
        for key, child in items:
            flat.update(_settings(child, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {} if NOT_COMPARED.match(prefix) else {prefix: str(value)}


def _task_names(runs: Sequence[RunData]) -> list[str]:
    """Tasks of all runs, in the order in which they are first met."""
    return list(dict.fromkeys(task["name"] for run in runs for task in run.summary["tasks"]))


# ---- tables ----------------------------------------------------------------------------------------------------------


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
    return _run_cells(summary).rich()


def comparison(runs: Sequence[RunData]) -> Table:
    """One row per config name and strategies: median (min..max) over seeds, best average performance first.

    A task that a config does not have shows as a dash.
    """
    return _comparison_cells(runs).rich()


def _run_cells(summary: Mapping[str, Any]) -> Cells:
    rows = []
    for task in summary["tasks"]:
        learned, final = _number(task["learned"]), _number(task["final"])
        kept = f"{final / learned:.0%}" if learned > 0 and math.isfinite(final) else "–"
        rows.append([str(task["name"]), number_text(learned), number_text(final), kept])
    totals = [
        ["average performance", "", number_text(_number(summary["average_performance"])), ""],
        ["forgetting", "", number_text(_number(summary["forgetting"])), ""],
    ]
    return Cells(["task", "learned", "final", "kept"], rows, totals, left=1)


def _comparison_cells(runs: Sequence[RunData]) -> Cells:
    tasks = _task_names(runs)
    rows = [
        [
            group.config,
            group.label,
            str(group.seeds),
            _text_range(group.values("average_performance")),
            number_text(_median(group.values("forgetting"))),
            *(number_text(_median(group.task_values(task, "final"))) for task in tasks),
            f"{_median(group.values('steps_per_second')):,.0f}",
        ]
        for group in group_runs(runs)
    ]
    columns = ["config", "strategy", "seeds", "average performance", "forgetting", *tasks, "steps/s"]
    return Cells(columns, rows, [], left=2)


def _number(value: Any) -> float:
    """A number of a summary; JSON has no NaN, so what is undefined may be null there."""
    return math.nan if value is None else float(value)


def _median(values: Iterable[float]) -> float:
    """Median of the defined values; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return median(defined) if defined else math.nan


def number_text(value: float) -> str:
    """Two decimals; a dash for what is undefined."""
    return "–" if math.isnan(value) else f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def _text_range(values: Sequence[float]) -> str:
    """`median (min..max)`; only the number itself if there is one run."""
    defined = [value for value in values if not math.isnan(value)]
    if len(defined) < 2:
        return number_text(_median(defined))
    return f"{number_text(median(defined))} ({number_text(min(defined))}..{number_text(max(defined))})"


# ---- plots -----------------------------------------------------------------------------------------------------------


def plot_run(run: RunData, path: Path) -> None:
    """Performance of every task over environment steps; writes a PNG.

    Where the task in training is known, the steps are shaded in its colour and a strip above names it.
    """
    figure = new_figure(8.6, 4.0)
    axes = figure.add_subplot()
    steps, performance = run.evaluations.steps, run.evaluations.performance()
    title = f"{run.config_name} · {run.strategy} · seed {run.summary['seed']}"
    segments = run.summary.get("segments", [])
    if segments:
        title += "  (strip: task in training)"
    _over_steps(axes, title, [(steps, performance)], title_pad=22 if segments else 8)
    for segment in segments:
        _shade(axes, segment, run.evaluations.tasks, points_wide=72 * 0.75 * 8.6)
    for task in range(len(run.evaluations.tasks)):
        axes.plot(steps, performance[:, task], marker="o" if len(steps) <= 40 else "", markersize=3, **_line(task))
    _label_ends(axes, run.evaluations.tasks, performance[-1].tolist(), points_high=72 * 3.0)
    save_figure(figure, path)


def plot_comparison(runs: Sequence[RunData], path: Path) -> None:
    """One row of axes per config name; writes a PNG.

    Left: average performance over environment steps, a line per strategy (median over seeds, band from min to max).
    Right: bars of the final performance per task (median over seeds) with a mark at the performance when learned.
    """
    configs = by_config(runs)
    groups = {name: group_runs(members) for name, members in configs.items()}
    tasks = {name: _task_names(members) for name, members in configs.items()}
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
    _over_steps(axes, title, curves)
    for index, (steps, average) in enumerate(curves):
        line = _line(index)
        if average.shape[1] > 1:
            low, high = np.nanmin(average, axis=1), np.nanmax(average, axis=1)
            axes.fill_between(steps, low, high, color=line["color"], alpha=0.15, linewidth=0)
        axes.plot(steps, np.nanmedian(average, axis=1), **line)
    _label_ends(axes, [group.label for group in groups], [float(np.nanmedian(v[-1])) for _, v in curves], points_high)


def _plot_tasks(axes: Axes, groups: Sequence[Group], tasks: Sequence[str]) -> None:
    height = 0.8 / len(groups)
    for index, group in enumerate(groups):
        at = np.arange(len(tasks)) - 0.4 + (index + 0.5) * height
        final = [_median(group.task_values(task, "final")) for task in tasks]
        learned = [_median(group.task_values(task, "learned")) for task in tasks]
        axes.barh(at, final, height=0.86 * height, color=_line(index)["color"], linewidth=0)
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


def _over_steps(
    axes: Axes, title: str, curves: Sequence[tuple[Sequence[int], np.ndarray]], title_pad: float = 8
) -> None:
    """Axes of performance over environment steps, wide enough for `curves`."""
    from matplotlib.ticker import EngFormatter

    steps = [step for grid, _ in curves for step in grid]
    low = min(float(np.nanmin(values)) for _, values in curves)
    high = max(float(np.nanmax(values)) for _, values in curves)
    margin = 0.04 * (max(high, 1.0) - min(low, 0.0))
    axes.set_ylim(min(low, 0.0) - margin, max(high, 1.0) + margin)
    axes.set_xlim(min(0, *steps), max(1, *steps))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(title, fontsize=10, loc="left", color=INK, pad=title_pad)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("performance (0 useless, 1 solved)")
    strip_axes(axes, grid="y")


def _shade(axes: Axes, segment: Mapping[str, Any], tasks: Sequence[str], points_wide: float) -> None:
    """Shade the steps of `segment` in the colour of its task (None: all tasks) and name it above if there is room.

    `points_wide` is the width of the axes in points (1/72 inch); a letter needs about 5.5.
    """
    task, start, end = segment["task"], segment["start"], segment["end"]
    color = GRID if task is None else _line(task)["color"]
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


def _label_ends(axes: Axes, labels: Sequence[str], values: Sequence[float], points_high: float) -> None:
    """Write each label right of the axes at the end of its line, moved apart where they would overlap.

    `points_high` is the height of the axes in points (1/72 inch); a label needs 12.
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
            color=_line(int(index))["color"],
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


def _line(index: int) -> dict[str, Any]:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})


# ---- page ------------------------------------------------------------------------------------------------------------


def html(runs: Sequence[RunData], out_dir: Path) -> Path:
    """Write `report.html` (one file that embeds the plots) into `out_dir`, and the plots into `out_dir/plots`.

    Returns:
        Path of the page.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, (name, members) in enumerate(by_config(runs).items(), start=1):
        prefix = f"{number}-{_slug(name)}"
        plot = out_dir / "plots" / f"{prefix}.png"
        plot_comparison(members, plot)
        pages: list[dict[str, Any]] = []
        for group in group_runs(members):
            for run in group.runs:
                file = f"{prefix}-{len(pages) + 1}-{_slug(run.strategy)}-seed-{run.summary['seed']}.png"
                pages.append(_run_page(run, group.label, out_dir / "plots" / file))
        sections.append(
            {"name": name, "cells": _comparison_cells(members).without_first(), "plot": embed(plot), "runs": pages}
        )
    path = out_dir / "report.html"
    path.write_text(render("report.html.j2", sections=sections, count=len(runs)))
    return path


def render(template: str, **content: Any) -> str:
    """A page from one of the templates beside this file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**content)


def _run_page(run: RunData, label: str, plot: Path) -> dict[str, Any]:
    """What the page shows of one run."""
    plot_run(run, plot)
    summary = run.summary
    return {
        "title": f"{label}, seed {summary['seed']}",
        "path": str(run.path),
        "average_performance": number_text(_number(summary["average_performance"])),
        "forgetting": number_text(_number(summary["forgetting"])),
        "env_steps": f"{summary['env_steps']:,}",
        "steps_per_second": f"{_number(summary['steps_per_second']):,.0f}",
        "cells": _run_cells(summary),
        "plot": embed(plot),
        "config": yaml.safe_dump(summary["config"], sort_keys=False),
        "versions": summary["versions"],
        "machine": summary["machine"],
    }


def embed(path: Path) -> str:
    """A PNG as a data address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _slug(text: str) -> str:
    """`text` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:60]


def write_report(paths: Sequence[Path], out_dir: Path, out: Console) -> Path:
    """Print the tables of the runs at `paths`, and write the page and the plots (see `html`).

    Returns:
        Path of the page.

    Raises:
        ReportError: see `load_runs`.
    """
    runs = load_runs(paths)
    for members in by_config(runs).values():
        for group in group_runs(members):
            for run in group.runs:
                out.print(Text(f"\n{run.config_name} · {group.label} · seed {run.summary['seed']}", style="bold"))
                out.print(table(run.summary))
        if len(members) > 1:
            out.print(Text(f"\n{members[0].config_name}: median (min..max) over seeds", style="bold"))
            out.print(_comparison_cells(members).without_first().rich())
    return html(runs, out_dir)
