"""What came of a recipe (see `agent.published`): the numbers of every row as they are stored, and its verdict."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean, median
from typing import Any

from lifelong.agent.compare import Run
from lifelong.agent.errors import ConfigError
from lifelong.agent.files import read_json
from lifelong.agent.published import RECIPES, ROOT, Recipe
from lifelong.agent.published import verdict as word
from lifelong.agent.report.comparison import measured
from lifelong.agent.report.runs import RunData, load_runs, number
from lifelong.agent.runtime.machine import machine, versions

#: what a script may give of a row for the figure, beside numbers
DRAWN = ("curve", "image")
_SUMMARY = {"seed": int, "seconds": float, "measures": dict}


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


def commit(file: Path | None = None) -> str:
    """The last commit of the source tree (of a file in it), short; empty where there is none."""
    words = ["git", "log", "-1", "--format=%h", *(["--", str(file)] if file else [])]
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def measure(run: RunData, name: str, known_from: float) -> float:
    """A number of a run, of `MEASURES`; `known_from` is the performance from which on a task is known.

    A task was learned if it was known at some evaluation; `steps_to_learn` is the first evaluation by which all were,
    and infinite if they never were. What was lived is the mean of the lines of the log: `early_return` of those in the
    first quarter of the steps, `online_return` of those after three quarters, `lived_change` the difference.
    """
    if name == "lived_change":
        return measure(run, "online_return", known_from) - measure(run, "early_return", known_from)
    if name in ("online_return", "early_return", "return_over_run"):
        steps, key = number(run.summary["env_steps"]), "continual/online_return"
        since = 0.75 * steps if name == "online_return" else 0.0
        until = 0.25 * steps if name == "early_return" else math.inf
        lived = [number(line[key]) for line in run.rows if key in line and since < line["step"] <= until]
        return fmean(lived or [math.nan])
    if name == "error":
        return -float(run.evaluations.tensor()[-1].mean())
    if name not in ("tasks_learned", "tasks_kept", "steps_to_learn"):
        return measured(run, name)
    known = run.evaluations.performance() >= known_from  # [points, tasks]
    if name == "tasks_learned":
        return float(known.any(0).sum())
    if name == "tasks_kept":
        return float(known[-1].sum())
    return float(run.evaluations.steps[known.argmax(0).max()]) if known.any(0).all() else math.inf


def by_row(recipe: Recipe, budget: str, runs: Sequence[Run]) -> dict[str, list[RunData]]:
    """The finished runs of every row of a recipe with a config."""
    pairs = list(zip(runs, load_runs([run.folder for run in runs]), strict=True)) if runs else []
    return {label: [data for run, data in pairs if run.row == row] for label, row in recipe.variants(budget).items()}


def _finite(values: Iterable[float]) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in values]


def _of_runs(recipe: Recipe, made: Sequence[RunData]) -> dict[str, Any]:
    seconds = [run.summary["env_steps"] / max(number(run.summary["steps_per_second"]), 1e-9) for run in made]
    return {
        "seeds": [run.summary["seed"] for run in made],
        "measures": {name: _finite(measure(run, name, recipe.known_from) for run in made) for name in recipe.measures},
        "env_steps": made[0].summary["env_steps"],
        "seconds": [round(x, 1) for x in seconds],
    }


def _of_script(recipe: Recipe, runs: Sequence[Run]) -> dict[str, Any]:
    made = [read_json(run.folder / "summary.json", _SUMMARY) for run in runs]
    for name in recipe.measures:
        if missing := [run for run, row in zip(runs, made, strict=True) if name not in row["measures"]]:
            raise ConfigError(f"{missing[0].folder} has no {name}, which {recipe.path.name} asks of every row")
    return {
        "seeds": [row["seed"] for row in made],
        "measures": {name: _finite(row["measures"][name] for row in made) for name in recipe.measures},
        "seconds": [row["seconds"] for row in made],
        **{key: [row[key] for row in made] for key in DRAWN if key in made[0]},
    }


def stored_rows(recipe: Recipe, budget: str, path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a recipe that a JSON of `lifelong compare` has, or for a script of the same name one of `lifelong
    bench`, with its rows by label.

    Raises:
        ConfigError: a comparison of another config, another benchmark, or one without a measure of the recipe.
    """
    return _of_benchmark(recipe, path) if recipe.script else _of_comparison(recipe, budget, path)


def _of_benchmark(recipe: Recipe, path: Path) -> dict[str, dict[str, Any]]:
    found = read_json(path, {"benchmark": str, "date": str, "commit": str, "rows": {str: [dict]}})
    if found["benchmark"] != recipe.name:
        raise ConfigError(f"{path} is of benchmark {found['benchmark']}; recipe {recipe.name} is about another one")
    told = {"file": path.name, "date": found["date"], "commit": found["commit"][:7]}
    rows = {}
    for label in recipe.rows:
        made = found["rows"].get(label, [])
        if made:
            values = {name: [seed[name] for seed in made] for name in recipe.measures}
            seeds = list(range(len(made)))
            rows[label] = {"seeds": seeds, "measures": values, "seconds": [None] * len(seeds), "from": told}
    return rows


def _of_comparison(recipe: Recipe, budget: str, path: Path) -> dict[str, dict[str, Any]]:
    found = read_json(path, {"config": str, "date": str, "arms": list})
    if Path(found["config"]).stem != recipe.config:
        raise ConfigError(f"{path} compares {found['config']}; recipe {recipe.name} is about {recipe.config}")
    arms = {arm["variant"]: arm for arm in found["arms"]}
    told = {"file": path.name, "date": found["date"], "commit": found.get("commit") or commit(path.resolve())}
    rows = {}
    for label, words in recipe.variants(budget).items():
        arm = arms.get(" ".join(words))
        if arm:
            values = {name: _of_arm(arm, name, path) for name in recipe.measures}
            seeds = arm.get("seeds", list(range(len(arm["average_performance"]))))
            speeds = [arm["env_steps"] / speed for speed in arm["steps_per_second"]]
            steps = {"env_steps": arm["env_steps"], "seconds": [round(x, 1) for x in speeds]}
            rows[label] = {"seeds": seeds, "measures": values, **steps, "from": told}
    return rows


def _of_arm(arm: Mapping[str, Any], name: str, path: Path) -> list[float | None]:
    if name == "learned" and name not in arm:
        return [fmean(seed) for seed in zip(*(task["learned"] for task in arm["tasks"]), strict=True)]
    if name not in arm:
        raise ConfigError(f"{path} has no {name} of {arm['variant']}")
    return list(arm[name]) if isinstance(arm[name], list) else [arm[name]]


def result(
    recipe: Recipe,
    budget: str,
    runs: Sequence[Run],
    stored: Mapping[str, Mapping[str, Any]] | None = None,
    begun: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All that is said of the finished runs of a recipe, as plain data; an infinite number is null.

    Args:
        recipe: the recipe.
        budget: its budget.
        runs: its finished runs.
        stored: rows that were made elsewhere, see `of_comparison`; runs are those of other seeds.
        begun: date and commit.
    """
    rows, stored = [], stored or {}
    data = {} if recipe.script else by_row(recipe, budget, runs)
    for label, words in recipe.variants(budget).items():
        of_row = [run for run in runs if run.row == words]
        parts = [stored[label]] if label in stored else []
        if of_row:
            parts.append(_of_script(recipe, of_row) if recipe.script else _of_runs(recipe, data[label]))
        rows.append({"label": label, "overrides": list(words), **_joined(parts)})
    found: dict[str, Any] = {"recipe": recipe.name, "budget": budget, **_when(rows, runs, begun), "rows": rows}
    found["checks"] = [
        {"check": check.text, "holds": holds} for check, holds in zip(recipe.checks, held(recipe, rows), strict=True)
    ]
    found["verdict"] = verdict(recipe, found)
    return {**found, "machine": machine("cpu"), "versions": versions()}


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Parts of a row, with their seeds one after another."""
    joined = dict(parts[0])
    for part in parts[1:]:
        joined |= {key: joined[key] + part[key] for key in ("seeds", "seconds")}
        joined["measures"] = {name: values + part["measures"][name] for name, values in joined["measures"].items()}
        joined["from"] = {**joined["from"], "seeds": list(parts[0]["seeds"])}
    return joined


def _when(rows: Sequence[Mapping[str, Any]], runs: Sequence[Run], begun: Mapping[str, str] | None) -> Mapping[str, str]:
    if not runs:  # all of it was made elsewhere
        return {key: rows[0]["from"][key] for key in ("date", "commit")}
    return begun or {"date": date.today().isoformat(), "commit": commit()}


def medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Row -> measure -> median over seeds; null is infinite."""
    return {
        row["label"]: {
            name: median(math.inf if x is None else x for x in values) for name, values in row["measures"].items()
        }
        for row in rows
    }


def held(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each check of a recipe holds for rows of a result."""
    found = medians(rows)
    return [check.holds(found) for check in recipe.checks]


def verdict(recipe: Recipe, found: Mapping[str, Any]) -> str:
    """That of a stored result, from its numbers: see `agent.published.verdict`."""
    return word(recipe.checks, held(recipe, found["rows"]))


def differences(recipe: Recipe, found: Mapping[str, Any], again: Sequence[Run]) -> list[str]:
    """What a stored result says that its numbers, or the runs that are at hand, do not; a sentence each."""
    said = []
    for check, stored, holds in zip(recipe.checks, found["checks"], held(recipe, found["rows"]), strict=True):
        if (stored["check"], stored["holds"]) != (check.text, holds):
            said.append(
                f"stored: {stored['check']} {_holds(stored['holds'])}; by its numbers: {check.text} {_holds(holds)}"
            )
    if found["verdict"] != verdict(recipe, found):
        said.append(f"the stored verdict is {found['verdict']}, that of its numbers {verdict(recipe, found)}")
    for run in again:
        label = next(label for label, row in recipe.variants(found["budget"]).items() if row == run.row)
        row = next(row for row in found["rows"] if row["label"] == label)
        made = _of_script(recipe, [run]) if recipe.script else _of_runs(recipe, load_runs([run.folder]))
        for name in recipe.measures:
            stored_values = dict(zip(row["seeds"], row["measures"][name], strict=True))
            if run.seed in stored_values and stored_values[run.seed] != made["measures"][name][0]:
                stored_value, value = stored_values[run.seed], made["measures"][name][0]
                said.append(f"{label}, seed {run.seed}: {name} is stored as {stored_value}, the run has {value}")
    return said


def _holds(holds: bool) -> str:
    return "holds" if holds else "does not hold"
