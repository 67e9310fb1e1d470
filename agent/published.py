"""Recipes of published tables, one in `benchmarks/published/` each. No torch here.

A recipe is a YAML file: what was claimed, by whom, how it was measured, the rows that were published, and the same as a
comparison of ours (see `agent.compare`), with checks that say whether the claim holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lifelong.agent.errors import ConfigError, choice

#: the root of the source tree, and what lies in it
ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "benchmarks" / "published"
BUDGETS = ("small", "full")

#: what a recipe may ask of a run (see `agent.report.published`)
MEASURES = {
    "average_performance": "average performance at the end",
    "learned": "mean performance when learned",
    "forgetting": "forgetting",
    "tasks_learned": "tasks learned",
    "tasks_kept": "tasks known at the end",
    "steps_to_learn": "steps until all were learned",
    "online_return": "return in the last quarter, as it was lived",
    "error": "mean squared error at the end",
}
_NUMBER = r"-?\d[\d_]*(?:\.\d+)?(?:e-?\d+)?"
_CHECK = re.compile(
    rf"(?:(?P<times>{_NUMBER}) x )?(?P<left>.+?)\.(?P<measure>\w+) (?P<sign>>=|<=|>|<) "
    rf"(?:(?P<number>{_NUMBER})|(?P<right>.+?))"
)


@dataclass(frozen=True)
class Check:
    """`LEFT.measure > RIGHT`, or `LEFT.measure >= 7`: medians over seeds of two rows, or of one and a number; `3 x
    LEFT.measure <= RIGHT` has three times the left one."""

    text: str
    left: str
    measure: str
    sign: str
    right: str | float
    times: float = 1.0


@dataclass(frozen=True)
class Budget:
    """How much of it is done.

    Args:
        seeds: of the runs of every row; `seeds: 3` in a recipe is 0, 1 and 2.
        overrides: of the config, in every row.
    """

    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One published table.

    Args:
        name: of the file.
        title: for people.
        claim: what the paper says.
        source: the paper, and where in it.
        protocol: how it was done there.
        published: the rows that were published; the first one has the heads.
        config: ours, as a run config is written.
        rows: ours: label -> overrides of the config.
        budgets: `small` and `full`.
        measures: what is said of every row, of `MEASURES`.
        checks: what must hold for the claim to be reproduced.
        differs: from the protocol, in both budgets.
        known_from: performance from which on a task counts as learned and known.
        remarks: what was learned from it, and causes.
    """

    name: str
    title: str
    claim: str
    source: str
    protocol: str
    published: tuple[tuple[str, ...], ...]
    config: dict[str, Any]
    rows: dict[str, tuple[str, ...]]
    budgets: dict[str, Budget]
    measures: tuple[str, ...]
    checks: tuple[Check, ...]
    differs: str
    known_from: float = 0.95
    remarks: str = ""
    path: Path = field(default=Path(), compare=False)

    def variants(self, budget: str) -> dict[str, tuple[str, ...]]:
        """The overrides of every row under a budget."""
        return {label: (*self.budgets[budget].overrides, *own) for label, own in self.rows.items()}


def recipes() -> dict[str, Path]:
    """The recipes of the source tree.

    Raises:
        ConfigError: there is none, since this is an installed package.
    """
    found = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if not found:
        raise ConfigError("recipes come with the source tree, and this is an installed package; clone the repository")
    return found


def load(name: str) -> Recipe:
    """The recipe `name`.

    Raises:
        ConfigError: there is no such recipe, or a mistake in it, as one sentence.
    """
    found = recipes()
    path = found[choice("recipe", name, found)]
    raw = yaml.safe_load(path.read_text())
    known = {f.name for f in fields(Recipe)} - {"name", "path"}
    for key in raw:
        choice(f"key in {path.name}", key, known)
    try:
        rows = {str(label): tuple(words) for label, words in raw["rows"].items()}
        budgets = {
            choice(f"budget in {path.name}", key, BUDGETS): Budget(_seeds(b["seeds"]), tuple(b.get("overrides", ())))
            for key, b in raw["budgets"].items()
        }
        measures = tuple(choice(f"measure in {path.name}", measure, MEASURES) for measure in raw["measures"])
        checks = tuple(_check(text, rows, measures, path) for text in raw["checks"])
        published = tuple(tuple(str(cell) for cell in row) for row in raw["published"])
        given = {
            **raw,
            "rows": rows,
            "budgets": budgets,
            "measures": measures,
            "checks": checks,
            "published": published,
        }
        return Recipe(name=name, path=path, **given)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path.name} is no recipe: {error}") from error


def _seeds(given: int | list[int]) -> tuple[int, ...]:
    return tuple(range(given)) if isinstance(given, int) else tuple(map(int, given))


def _check(text: str, rows: dict[str, tuple[str, ...]], measures: tuple[str, ...], path: Path) -> Check:
    found = _CHECK.fullmatch(text)
    if not found:
        raise ConfigError(
            f"{path.name}: check {text!r} is none; write `ROW.measure > ROW`, `ROW.measure >= 7`, or "
            "`3 x ROW.measure <= ROW`"
        )
    choice(f"measure in {path.name}", found["measure"], measures)
    for side in ("left", "right"):
        if found[side]:
            choice(f"row in {path.name}", found[side], rows)
    right = found["right"] or float(found["number"])
    times = float(found["times"] or 1.0)
    return Check(text, found["left"], found["measure"], found["sign"], right, times)
