"""What came of a recipe (see `agent.published`): numbers of every row, a verdict, a figure, and the page of all."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean, median
from textwrap import fill
from typing import Any

import numpy as np

from lifelong.agent.compare import Run
from lifelong.agent.published import MEASURES, RECIPES, ROOT, Recipe, load, recipes
from lifelong.agent.report.comparison import measured
from lifelong.agent.report.plots import label_ends, line_of, new_figure, over_steps, save_figure
from lifelong.agent.report.runs import RunData, load_runs, number
from lifelong.agent.report.statistics import interval
from lifelong.agent.report.tables import number_text
from lifelong.agent.runtime.machine import machine, versions

#: of the lines of the page
WIDTH = 125
PAGE = ROOT / "docs" / "published.md"
_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_HEAD = """# Published tables

What others have published, made again: `lifelong reproduce NAME` (`--list` names them) trains the rows of a recipe in
`benchmarks/published/` and checks what was claimed. A budget is `small` (minutes a run on one core of a CPU) or `full`
(nearer to the protocol of the paper). Numbers are means over seeds, with the interval of
[comparisons](metrics.md#in-comparisons); checks compare medians. `lifelong reproduce NAME --keep` writes this page.
"""


def kept(name: str) -> Path:
    """Where the source tree has the result of a recipe."""
    return RECIPES / "results" / f"{name}.json"


def kept_figure(name: str) -> Path:
    """Where the source tree has its figure."""
    return ROOT / "docs" / "images" / f"published_{name}.png"


def read(path: Path) -> dict[str, Any]:
    """A result that was written."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def measure(run: RunData, name: str, known_from: float) -> float:
    """A number of a run, of `MEASURES`; `known_from` is the performance from which on a task is known.

    A task was learned if it was known at some evaluation; `steps_to_learn` is the first evaluation by which all were,
    and infinite if they never were. `online_return` is the mean of the lines of the log after three quarters of the
    steps.
    """
    known = run.evaluations.performance() >= known_from  # [points, tasks]
    if name == "tasks_learned":
        return float(known.any(0).sum())
    if name == "tasks_kept":
        return float(known[-1].sum())
    if name == "online_return":
        late, key = 0.75 * number(run.summary["env_steps"]), "continual/online_return"
        return fmean([number(line[key]) for line in run.rows if line["step"] > late and key in line] or [math.nan])
    if name == "error":
        return -float(run.evaluations.tensor()[-1].mean())
    if name == "steps_to_learn":
        return float(run.evaluations.steps[known.argmax(0).max()]) if known.any(0).all() else math.inf
    return measured(run, name)


def _by_row(recipe: Recipe, budget: str, runs: Sequence[Run]) -> dict[str, list[RunData]]:
    pairs = list(zip(runs, load_runs([run.folder for run in runs]), strict=True))
    return {label: [data for run, data in pairs if run.row == row] for label, row in recipe.variants(budget).items()}


def result(recipe: Recipe, budget: str, runs: Sequence[Run]) -> dict[str, Any]:
    """All that is said of the finished runs of a recipe, as plain data; an infinite number is null."""
    rows, found = [], {}
    for label, made in _by_row(recipe, budget, runs).items():
        values = {name: [measure(run, name, recipe.known_from) for run in made] for name in recipe.measures}
        found[label] = {name: median(x) for name, x in values.items()}
        seconds = [run.summary["env_steps"] / max(number(run.summary["steps_per_second"]), 1e-9) for run in made]
        rows.append(
            {
                "label": label,
                "overrides": list(recipe.variants(budget)[label]),
                "seeds": [run.summary["seed"] for run in made],
                "measures": {name: [x if math.isfinite(x) else None for x in xs] for name, xs in values.items()},
                "env_steps": made[0].summary["env_steps"],
                "seconds": [round(x, 1) for x in seconds],
            }
        )
    checks = []
    for check in recipe.checks:
        left = check.times * found[check.left][check.measure]
        right = check.right if isinstance(check.right, float) else found[check.right][check.measure]
        checks.append({"check": check.text, "holds": bool(_SIGNS[check.sign](left, right))})
    return {
        "recipe": recipe.name,
        "budget": budget,
        "date": date.today().isoformat(),
        "rows": rows,
        "checks": checks,
        "machine": machine("cpu"),
        "versions": versions(),
    }


def verdict(found: Mapping[str, Any]) -> str:
    """In a few words."""
    held = sum(check["holds"] for check in found["checks"])
    word = "reproduced" if held == len(found["checks"]) else "reproduced in part" if held else "not reproduced"
    return f"{word}, {held} of {len(found['checks'])} checks ({found['budget']} budget)"


def _cell(values: Sequence[float | None]) -> str:
    """Mean and interval of what is known; how many seeds have no number."""
    there = [x for x in values if x is not None]
    never = f"never in {len(values) - len(there)} of {len(values)}" if len(there) < len(values) else ""
    if not there:
        return "never"
    low, high = interval(there)
    said = _shown(fmean(there)) + (f" ({_shown(low)} to {_shown(high)})" if low != high else "")
    return ", ".join(filter(None, [said, never]))


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else number_text(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ours(recipe: Recipe, found: Mapping[str, Any]) -> str:
    """Our rows as a table of Markdown."""
    heads = ["ours", "seeds", *(MEASURES[name] for name in recipe.measures), "steps", "minutes a run"]
    rows = [
        [
            row["label"],
            str(len(row["seeds"])),
            *(_cell(row["measures"][name]) for name in recipe.measures),
            f"{row['env_steps']:,}",
            f"{fmean(row['seconds']) / 60:.1f}",
        ]
        for row in found["rows"]
    ]
    return _table(heads, rows)


def summary(recipe: Recipe, found: Mapping[str, Any]) -> str:
    """For the terminal."""
    said = [f"{'held' if check['holds'] else 'did not hold'}: {check['check']}" for check in found["checks"]]
    return "\n".join([ours(recipe, found), *said, f"{recipe.title}: {verdict(found)}"])


def section(recipe: Recipe, found: Mapping[str, Any]) -> str:
    """A recipe and what came of it, as Markdown."""
    marks = [f"- {'holds' if check['holds'] else '**does not hold**'}: {check['check']}" for check in found["checks"]]
    told = {"Claim": recipe.claim, "Source": recipe.source, "Protocol": recipe.protocol}
    parts = [
        f"## {recipe.title}",
        f"`lifelong reproduce {recipe.name} --budget {found['budget']}` ({found['date']}): **{verdict(found)}**.",
        *(_line(f"{key}: {text}") for key, text in told.items()),
        _table(recipe.published[0], recipe.published[1:]).rstrip(),
        ours(recipe, found).rstrip(),
        f"![{recipe.title}](images/{kept_figure(recipe.name).name})",
        "\n".join(marks),
        _line(f"What differs: {recipe.differs}"),
        _line(recipe.remarks),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(text: str) -> str:
    return fill(" ".join(text.split()), WIDTH)


def page() -> str:
    """The page of all recipes that have a result."""
    made = [load(name) for name in recipes() if kept(name).is_file()]
    return "\n".join([_HEAD, *(section(recipe, read(kept(recipe.name))) for recipe in made)])


def figure(recipe: Recipe, budget: str, runs: Sequence[Run], path: Path) -> None:
    """Performance over environment steps, mean over seeds and from the least to the most: a panel for every row with a
    line for every task, or, of one task, one panel with a line for every row; writes a PNG."""
    rows = _by_row(recipe, budget, runs)
    tasks = next(iter(rows.values()))[0].evaluations.tasks
    lines = {label: _curves(made) for label, made in rows.items()}
    panels = (
        {"": {label: (steps, curves[:, :, 0]) for label, (steps, curves) in lines.items()}}
        if len(tasks) == 1
        else {
            label: {task: (steps, curves[:, :, i]) for i, task in enumerate(tasks)}
            for label, (steps, curves) in lines.items()
        }
    )
    drawn = new_figure(7.5, 3.4 * len(panels))
    for index, (title, held) in enumerate(panels.items()):
        axes = drawn.add_subplot(len(panels), 1, index + 1)
        over_steps(axes, title or recipe.title, [(steps.tolist(), curves.T) for steps, curves in held.values()])
        for order, (steps, curves) in enumerate(held.values()):
            line = line_of(order)
            axes.fill_between(steps, curves.min(0), curves.max(0), color=line["color"], alpha=0.15, linewidth=0)
            axes.plot(steps, curves.mean(0), **line)
        ends = [float(curves[:, -1].mean()) for _, curves in held.values()]
        label_ends(axes, list(held), ends, points_high=72 * 2.6)
    save_figure(drawn, path)


def _curves(made: Sequence[RunData]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [points] and performance [seeds, points, tasks]; all runs of a row are evaluated at the same steps."""
    return np.array(made[0].evaluations.steps), np.stack([run.evaluations.performance() for run in made])
