"""What came of recipes, as text: tables and verdicts for the terminal, for the page of all, and for the board."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from textwrap import fill
from typing import Any

from lifelong.agent.published import RECIPES, ROOT, Recipe, load, recipes
from lifelong.agent.report import published
from lifelong.agent.report.statistics import interval
from lifelong.agent.report.tables import number_text

#: of the lines of the page
WIDTH = 125
PAGE = ROOT / "docs" / "published.md"
BOARD = RECIPES / "README.md"
_PAGE_HEAD = """# Published tables

What others have published, made again: `lifelong reproduce NAME` (`--list` names them) trains the rows of a recipe in
`benchmarks/published/` and checks what was claimed. A budget is `small` (minutes a run on one core of a CPU) or `full`
(nearer to the protocol of the paper). Numbers are means over seeds, with the interval of
[comparisons](metrics.md#in-comparisons); checks compare medians. `lifelong reproduce NAME --keep` writes this page.

A verdict is made of the checks: *reproduced*, all hold, and one of them is about a number that was published; *same
order*, all that compare rows hold; *not reproduced* otherwise, and then its cause is told.
"""
#: around what is generated of the board
_BEGIN, _END = "<!-- made by `lifelong reproduce NAME --keep` -->\n", "<!-- until here -->\n"


def shown(value: float | None) -> str:
    """A number as the tables show it; what is infinite is never."""
    if value is None or math.isinf(value):
        return "never"
    if abs(value) >= 100 or (abs(value) > 1 and value == int(value)):
        return f"{value:,.0f}"
    return f"{value:.2g}" if 0 < abs(value) < 0.095 else number_text(value)


def verdict(recipe: Recipe, found: Mapping[str, Any]) -> str:
    """With the number of checks that hold."""
    held = published.held(recipe, found["rows"])
    return f"{published.verdict(recipe, found)}, {sum(held)} of {len(held)} checks ({found['budget']} budget)"


def _cell(values: Sequence[float | None], target: float | None) -> str:
    """Mean and interval of what is known; how many seeds have no number; what was published."""
    there = [x for x in values if x is not None]
    never = f"never in {len(values) - len(there)} of {len(values)}" if len(there) < len(values) else ""
    beside = "" if target is None else f"published {shown(target)}"
    if not there:
        return ", ".join(filter(None, ["never", beside]))
    low, high = interval(there)
    said = shown(fmean(there)) + (f" ({shown(low)} to {shown(high)})" if low != high else "")
    return ", ".join(filter(None, [said, never, beside]))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ours(recipe: Recipe, found: Mapping[str, Any]) -> str:
    """Our rows as a table of Markdown."""
    steps = all("env_steps" in row for row in found["rows"])
    heads = ["ours", "seeds", *recipe.measures.values(), *(["steps"] if steps else []), "minutes a run"]
    rows = [
        [
            row["label"],
            str(len(row["seeds"])),
            *(_cell(row["measures"][m], recipe.targets.get(row["label"], {}).get(m)) for m in recipe.measures),
            *([f"{row['env_steps']:,}"] if steps else []),
            _minutes(row["seconds"]),
        ]
        for row in found["rows"]
    ]
    return _table(heads, rows)


def _minutes(seconds: Sequence[float | None]) -> str:
    """Of a run, where it was kept."""
    known = [x for x in seconds if x is not None]
    return f"{fmean(known) / 60:.1f}" if known else "–"


def summary(recipe: Recipe, found: Mapping[str, Any]) -> str:
    """For the terminal."""
    held = published.held(recipe, found["rows"])
    said = [f"{'held' if holds else 'did not hold'}: {c.text}" for c, holds in zip(recipe.checks, held, strict=True)]
    return "\n".join([ours(recipe, found), *said, f"{recipe.title}: {verdict(recipe, found)}"])


def section(recipe: Recipe, found: Mapping[str, Any]) -> str:
    """A recipe and what came of it, as Markdown."""
    held = published.held(recipe, found["rows"])
    marks = [
        f"- {'holds' if holds else '**does not hold**'}: {check.text}"
        for check, holds in zip(recipe.checks, held, strict=True)
    ]
    told = {"Claim": recipe.claim, "Source": recipe.source, "Protocol": recipe.protocol}
    parts = [
        f"## {recipe.name}",
        f"**{recipe.title}.**",
        f"`lifelong reproduce {recipe.name} --budget {found['budget']}` ({found['date']}): "
        f"**{verdict(recipe, found)}**.",
        *(_line(f"{key}: {text}") for key, text in told.items()),
        _table(recipe.published[0], recipe.published[1:]).rstrip(),
        ours(recipe, found).rstrip(),
        f"![{recipe.title}](images/{published.kept_figure(recipe.name).name})",
        "\n".join(marks),
        _line(_elsewhere(found)),
        _line(f"What differs: {recipe.differs}"),
        _line(f"Cause: {recipe.cause}" if recipe.cause else ""),
        _line(recipe.remarks),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _elsewhere(found: Mapping[str, Any]) -> str:
    """Which rows were not made by this recipe's command."""
    taken: dict[str, list[str]] = {}
    for row in found["rows"]:
        if "from" in row:
            seeds = row["from"].get("seeds")
            which = f" (seeds {', '.join(map(str, seeds))})" if seeds else ""
            taken.setdefault(row["from"]["file"], []).append(f"{row['label']}{which}")
    every = [row["label"] for row in found["rows"]]
    return " ".join(
        f"Taken from `benchmarks/results/{file}`, which has the same config: "
        f"{'every row' if labels == every else '; '.join(labels)}."
        for file, labels in taken.items()
    )


def _line(text: str) -> str:
    return fill(" ".join(text.split()), WIDTH)


def made() -> list[tuple[Recipe, dict[str, Any]]]:
    """Every recipe that has a result, with it."""
    return [(load(name), published.read(published.kept(name))) for name in recipes() if published.kept(name).is_file()]


def page() -> str:
    """The page of all recipes that have a result."""
    every = made()
    rows = [[f"[{recipe.name}](#{recipe.name})", *_ends(recipe, found)[:3]] for recipe, found in every]
    board = "## The board\n\n" + _table(["recipe", "published", "got", "verdict"], rows)
    return "\n".join([_PAGE_HEAD, board, *(section(recipe, found) for recipe, found in every)])


def board() -> str:
    """The README of the recipes, with a row for each of them in its place."""
    heads = ["recipe", "claim", "published", "got", "verdict", "seeds", "minutes", "date", "commit"]
    rows = []
    for recipe, found in made():
        said, got, which = _ends(recipe, found)
        seeds = sorted({len(row["seeds"]) for row in found["rows"]})
        minutes = sum(x or 0.0 for row in found["rows"] for x in row["seconds"]) / 60
        counts = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        last = [counts, f"{minutes:.0f}" if minutes else "–", found["date"], found["commit"] or "–"]
        rows.append([f"`{recipe.name}`", " ".join(recipe.claim.split()), said, got, which, *last])
    missing = [name for name in recipes() if not published.kept(name).is_file()]
    left = f"\nNot made yet: {', '.join(f'`{name}`' for name in missing)}.\n" if missing else ""
    text = BOARD.read_text() if BOARD.is_file() else f"{_BEGIN}{_END}"
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}{_table(heads, rows)}{left}{_END}{rest.split(_END)[1]}"


def _ends(recipe: Recipe, found: Mapping[str, Any]) -> tuple[str, str, str]:
    """What was published, what we got, and the verdict with its cause."""
    texts = {
        label: {name: shown(x) for name, x in values.items()}
        for label, values in published.medians(found["rows"]).items()
    }
    which = published.verdict(recipe, found)
    cause = f": {' '.join(recipe.cause.split())}" if recipe.cause else ""
    return recipe.headline["published"], recipe.filled(recipe.headline["got"], texts), f"**{which}**{cause}"


def listed() -> list[str]:
    """A line for every recipe, with what came out."""
    lines = []
    for name in recipes():
        recipe, path = load(name), published.kept(name)
        came = verdict(recipe, published.read(path)) if path.is_file() else "not made yet"
        lines.append(f"{name:<22} {recipe.title}: {came}")
    return lines
