"""Recipes of published tables, one in `benchmarks/published/` each. No torch here.

A recipe is a YAML file: what was claimed, by whom, how it was measured, the rows that were published, and the same as
a comparison of ours (see `agent.compare`) or as a script that makes one row a call, with checks that say whether the
claim holds.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lifelong.agent.errors import ConfigError, choice

#: the root of the source tree, and what lies in it
ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "benchmarks" / "published"
BUDGETS = ("small", "full")

#: what a recipe may ask of a run (see `agent.report.published`); a script names its own
MEASURES = {
    "average_performance": "average performance at the end",
    "learned": "mean performance when learned",
    "forgetting": "forgetting",
    "tasks_learned": "tasks learned",
    "tasks_kept": "tasks known at the end",
    "steps_to_learn": "steps until all were learned",
    "online_return": "return in the last quarter, as it was lived",
    "early_return": "return in the first quarter, as it was lived",
    "lived_change": "return as it was lived, last quarter minus the first",
    "return_over_run": "mean return over the run, as it was lived",
    "error": "mean squared error at the end",
}
_NUMBER = r"-?\d[\d_]*(?:\.\d+)?(?:e-?\d+)?"
_CHECK = re.compile(
    rf"(?:(?P<times>{_NUMBER}) x )?(?P<left>.+?)\.(?P<measure>[a-z]\w*) "
    rf"(?:(?P<sign>>=|<=|>|<) (?:(?P<number>{_NUMBER})|(?P<right>.+?))|= (?P<target>{_NUMBER}) ± (?P<within>{_NUMBER}))"
)
_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
#: a number of ours within a text: `{ROW.measure}`
_FILLED = re.compile(r"\{([^{}]+)\.(\w+)\}")


@dataclass(frozen=True)
class Check:
    """`LEFT.measure > RIGHT`, `LEFT.measure >= 7`, or `LEFT.measure = 0.9 ± 0.02`: medians over seeds of two rows, or
    of one and a number; `3 x LEFT.measure <= RIGHT` has three times the left one. With a row on the right it is about
    the order of rows, with a number about a level."""

    text: str
    left: str
    measure: str
    sign: str
    right: str | float
    times: float = 1.0
    within: float = 0.0

    @property
    def of_order(self) -> bool:
        """Whether it compares rows."""
        return isinstance(self.right, str)

    def holds(self, medians: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether it does, by the medians {row: {measure: number}}."""
        left = self.times * medians[self.left][self.measure]
        right = medians[self.right][self.measure] if isinstance(self.right, str) else self.right
        return abs(left - right) <= self.within if self.sign == "=" else bool(_SIGNS[self.sign](left, right))


def verdict(checks: Sequence[Check], held: Sequence[bool]) -> str:
    """`reproduced`: all checks hold, one of a level among them. `same order`: all that compare rows do. Else `not
    reproduced`."""
    order = [holds for check, holds in zip(checks, held, strict=True) if check.of_order]
    if all(held) and len(order) < len(held):
        return "reproduced"
    return "same order" if order and all(order) else "not reproduced"


@dataclass(frozen=True)
class Budget:
    """How much of it is done.

    Args:
        seeds: of the runs of every row; `seeds: 3` in a recipe is 0, 1 and 2.
        overrides: of the config, or words for the script, in every row.
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
        rows: ours: label -> overrides of the config, or words for the script.
        budgets: `small` and `full`.
        measures: what is said of every row: name -> words.
        checks: what must hold for the claim to be reproduced.
        headline: for the board: `published` in a few words, and what we `got`, with `{ROW.measure}` for medians.
        differs: from the protocol, in both budgets.
        config: ours: a run config as it is written, or the name of a bundled one; None with a script.
        script: in its place, a program beside the recipe, see `benchmarks/published/README.md`.
        axes: of the script's curves or images: `x`, `y`, and `log`, which of them are logarithmic.
        targets: row -> measure -> the number that was published, shown beside ours.
        known_from: performance from which on a task counts as learned and known.
        remarks: what was learned from it.
        cause: why it was not reproduced, in a sentence, tested and not guessed.
    """

    name: str
    title: str
    claim: str
    source: str
    protocol: str
    published: tuple[tuple[str, ...], ...]
    rows: dict[str, tuple[str, ...]]
    budgets: dict[str, Budget]
    measures: dict[str, str]
    checks: tuple[Check, ...]
    headline: dict[str, str]
    differs: str
    config: dict[str, Any] | str | None = None
    script: str = ""
    axes: dict[str, str] = field(default_factory=dict)
    targets: dict[str, dict[str, float]] = field(default_factory=dict)
    known_from: float = 0.95
    remarks: str = ""
    cause: str = ""
    path: Path = field(default=Path(), compare=False)

    def variants(self, budget: str) -> dict[str, tuple[str, ...]]:
        """The overrides of every row under a budget."""
        return {label: (*self.budgets[budget].overrides, *own) for label, own in self.rows.items()}

    def filled(self, text: str, medians: Mapping[str, Mapping[str, str]]) -> str:
        """A text with its `{ROW.measure}` said."""
        return _FILLED.sub(lambda found: medians[found[1]][found[2]], text)


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
    """The recipe `name`, or that of a file `name.yaml`.

    Raises:
        ConfigError: there is no such recipe, or a mistake in it, as one sentence.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"there is no recipe {name}")
    else:
        found = recipes()
        path = found[choice("recipe", name, found)]
    raw = yaml.safe_load(path.read_text())
    known = {f.name for f in fields(Recipe)} - {"name", "path"}
    try:
        for key in raw:
            choice(f"key in {path.name}", key, known)
        if ("config" in raw) == ("script" in raw):
            raise ConfigError(f"{path.name} needs either a config or a script")
        rows = {str(label): tuple(map(str, words or ())) for label, words in raw["rows"].items()}
        budgets = {
            choice(f"budget in {path.name}", key, BUDGETS): Budget(_seeds(b["seeds"]), tuple(b.get("overrides", ())))
            for key, b in raw["budgets"].items()
        }
        if "script" in raw:
            measures = {str(name): str(words) for name, words in raw["measures"].items()}
        else:
            measures = {name: MEASURES[choice(f"measure in {path.name}", name, MEASURES)] for name in raw["measures"]}
        headline = {key: str(raw["headline"][key]) for key in ("published", "got")}
        for label, measure in _FILLED.findall(headline["got"]):
            choice(f"row in {path.name}", label, rows)
            choice(f"measure in {path.name}", measure, measures)
        for label, targets in raw.get("targets", {}).items():
            choice(f"row in {path.name}", label, rows)
            for measure in targets:
                choice(f"measure in {path.name}", measure, measures)
        given = {
            **raw,
            "rows": rows,
            "budgets": budgets,
            "measures": measures,
            "checks": tuple(_check(text, rows, measures, path) for text in raw["checks"]),
            "published": tuple(tuple(str(cell) for cell in row) for row in raw["published"]),
            "headline": headline,
        }
        return Recipe(name=path.stem, path=path, **given)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path.name} is no recipe: {error}") from error


def _seeds(given: int | list[int]) -> tuple[int, ...]:
    return tuple(range(given)) if isinstance(given, int) else tuple(map(int, given))


def _check(text: str, rows: Mapping[str, Any], measures: Mapping[str, str], path: Path) -> Check:
    found = _CHECK.fullmatch(text)
    if not found:
        raise ConfigError(
            f"{path.name}: check {text!r} is none; write `ROW.measure > ROW`, `ROW.measure >= 7`, "
            "`ROW.measure = 0.9 ± 0.02`, or `3 x ROW.measure <= ROW`"
        )
    choice(f"measure in {path.name}", found["measure"], measures)
    for side in ("left", "right"):
        if found[side]:
            choice(f"row in {path.name}", found[side], rows)
    right = found["right"] or float(found["number"] or found["target"])
    times, within = float(found["times"] or 1.0), float(found["within"] or 0.0)
    return Check(text, found["left"], found["measure"], found["sign"] or "=", right, times, within)
