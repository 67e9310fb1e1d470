"""The reference pages are complete: every config key with its default, every part with its options, every metric."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints
from xml.etree import ElementTree

import pytest

from lifelong.agent import cli, compare, reading, registry
from lifelong.agent import config as configs
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.runtime.build import build_stream
from lifelong.agent.sweep.plan import GroupConfig, SweepConfig
from lifelong.envs.registry import ADAPTERS, ENVIRONMENTS
from lifelong.envs.tasks import CONTEXT, environment_class

DOCS = Path(__file__).parent.parent / "docs"


def keys(cls: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every dotted key of the config, tasks as `stream.tasks.0`."""
    hints = get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        key, hint = f"{prefix}{spec.name}", hints[spec.name]
        (item,) = get_args(hint)[:1] or (None,)
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, f"{key}.")
        else:
            yield key, spec
            if dataclasses.is_dataclass(item):
                yield from keys(item, f"{key}.0.")


KEYS = dict(keys(configs.Config))


def rows(page: str) -> dict[str, list[str]]:
    """The rows of all tables of a page: first cell without backticks -> the other cells."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_documented_with_its_default_and_choices(key: str) -> None:
    table = rows("configuration.md")
    assert key in table, f"{key} is missing in docs/configuration.md"
    kind, default, meaning = table[key]
    assert meaning
    spec = KEYS[key]
    if "choices" in spec.metadata:
        assert kind.split(", ") == list(spec.metadata["choices"])
    if "range" in spec.metadata:
        assert f"≥ {spec.metadata['range'].low:g}" in kind
    if isinstance(spec.default, bool):
        assert default == str(spec.default).lower()
    elif isinstance(spec.default, (int, float)):
        assert float(default.replace(",", "")) == spec.default
    elif spec.metadata.get("default"):
        assert default == f"`{spec.metadata['default']}`"


def documented_sweep_keys() -> dict[str, dataclasses.Field[Any]]:
    groups = {f"groups.NAME.{key}": spec for key, spec in keys(GroupConfig)}
    return {**dict(keys(SweepConfig)), **groups}


def test_every_key_of_a_sweep_is_documented_with_its_default_and_choices() -> None:
    table, known = rows("sweep.md"), documented_sweep_keys()
    described = {key for key, cells in table.items() if len(cells) == 3 and cells[0] not in ("type", "---")}
    assert described == set(known)
    for key, spec in known.items():
        kind, default, meaning = table[key]
        assert meaning
        if "choices" in spec.metadata:
            assert kind.split(", ") == list(spec.metadata["choices"])
            assert default == spec.default
        elif isinstance(spec.default, (int, float)):
            assert float(default.replace(",", "")) == spec.default and f"≥ {spec.metadata['range'].low:g}" in kind


def test_no_key_is_documented_that_is_not_there() -> None:
    for key in rows("configuration.md"):
        assert key in KEYS or key == "key" or set(key) <= {"-"}, f"docs/configuration.md has {key}"


#: the pages that describe parts
METHODS = "\n## \n".join(
    page.read_text() for page in (DOCS / "methods.md", DOCS / "cells.md", *sorted((DOCS / "strategies").glob("*.md")))
)


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k, names in registry.REGISTRY.items() if k != "env" for n in names]
)
def test_every_part_is_documented_with_its_options(kind: str, name: str) -> None:
    assert re.search(rf"^### {name}$|`{name}`", METHODS, re.MULTILINE), f"{kind} {name} is missing in docs/methods.md"
    if kind in ("optimizer", "schedule"):
        return
    section = re.search(rf"^### {name}$(.*?)(?=^##|\Z)", METHODS, re.MULTILINE | re.DOTALL)
    entry = section or re.search(rf"^- `{name}`(.*?)(?=^- |^$)", METHODS, re.MULTILINE | re.DOTALL)
    assert entry, f"{kind} {name} has no section in docs/methods.md or docs/strategies"
    said = entry[1]
    for anchor in re.findall(r"\((?:\w+\.md)?#([a-z_]+)\)", said):  # what several share is said once, and linked
        shared = re.search(rf"^### {anchor}$(.*?)(?=^##|\Z)", METHODS, re.MULTILINE | re.DOTALL | re.IGNORECASE)
        assert shared, f"{kind} {name} links to #{anchor}, which is on no page of methods"
        said += shared[1]
    for option in registry.options_of(registry.load(kind, name)):
        own = re.search(rf"^### {option}$", METHODS, re.MULTILINE)  # an option of many parts has a section
        assert own or f"`{option}`" in said, f"option {option} of {kind} {name} is not documented"


def test_the_table_of_cells_has_every_cell_with_its_jacobian_and_the_engines_that_follow() -> None:
    table = rows("cells.md")
    for jacobian in ("diagonal", "linear_diagonal", "block", "dense"):
        engines = [n for n in registry.REGISTRY["gradient"] if jacobian in registry.load("gradient", n).jacobians]
        assert table[jacobian][-1] == ", ".join(f"`{name}`" for name in engines)
    documented = {name for name, rest in table.items() if len(rest) == 5 and not set(name) <= {"-"}} - {"cell"}
    assert documented == set(registry.REGISTRY["cell"])


@pytest.mark.parametrize("name", registry.REGISTRY["cell"])
def test_the_row_of_a_cell_has_its_jacobian_its_source_and_the_size_of_its_carry(name: str) -> None:
    formula, jacobian, carry, time, source = rows("cells.md")[name]
    cell = registry.build("cell", {"kind": name, "size": 6}, 50)
    assert "=" in formula and source and jacobian == ("of its parts" if cell.composite else cell.jacobian)
    if jacobian in RTRL.jacobians:
        held = RTRL(cell, 1).state_dict()["weight"].numel()
        assert float(carry) == held / (6 * 50), f"docs/cells.md says {carry} for {name}, it is {held / 300:g}"
    else:
        assert carry == "–"
    measured = json.loads(sorted((DOCS.parent / "benchmarks/results").glob("cells-*.json"))[-1].read_text())
    over = measured["speed"]["cells"][name]["over_elstm"]
    assert time == (f"{over:.1f}" if over < 10 else f"{over:.0f}")


def test_the_table_of_solvers_has_what_was_measured() -> None:
    measured = json.loads(sorted((DOCS.parent / "benchmarks/results").glob("cells-*.json"))[-1].read_text())
    page = (DOCS / "cells.md").read_text()
    for cell, by_steps in measured["solver"]["cells"].items():
        for solver in next(iter(by_steps.values())):
            found = [row[solver] for row in by_steps.values()]
            times = [f"{r['over_loop']:.1f}" if r["over_loop"] < 10 else f"{r['over_loop']:.0f}" for r in found]
            shown = [f"{time} ({r['iterations']:.0f})" for time, r in zip(times, found, strict=True)]
            assert f"| `{cell}`, {solver} | {' | '.join(shown)} |" in page


@pytest.mark.parametrize("name", registry.REGISTRY["strategy"])
def test_every_strategy_is_in_the_table_of_families(name: str) -> None:
    families = rows("strategies/overview.md").values()
    assert name in ("finetune", "explore", "recode", "normalize_rewards") or any(
        f"`{name}`" in row[0] for row in families
    )


def test_links_between_pages_lead_somewhere() -> None:
    for page in DOCS.rglob("*.md"):
        for target, anchor in re.findall(r"\]\((?!https?:)([\w./]*)#?([\w-]*)\)", page.read_text()):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name} links to {target}"
            if anchor and file.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                assert anchor in map(slug, titles), f"{page.name} links to #{anchor} of {file.name}"


@pytest.mark.parametrize("name", registry.REGISTRY["schedule"])
def test_every_schedule_is_documented_with_its_options(name: str) -> None:
    text = " ".join(rows("concepts.md")[name])
    for option in registry.options_of(registry.load("schedule", name)):
        assert f"`{option}`" in text


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_is_documented_with_its_parameters(name: str) -> None:
    text = (DOCS / "environments.md").read_text()
    start = text.index(f"`{name}`")
    entry = text[start : text.index("\n" if text[:start].endswith("| ") else "\n\n", start)]
    cls = environment_class(name)
    own = set(registry.options_of(cls)) - set(registry.options_of(environment_class("CartPole")))
    if name in ADAPTERS:
        own -= {"env", *CONTEXT}  # a config cannot give them
    for parameter in {*cls.PARAMS, *own}:
        assert f"`{parameter}`" in entry, f"{parameter} of {name} is missing in docs/environments.md"


def test_every_metric_is_documented() -> None:
    text = (DOCS / "metrics.md").read_text()
    root = DOCS.parent
    code = "".join((root / "agent/runtime" / f"{name}.py").read_text() for name in ("metrics", "plasticity", "trainer"))
    for name in set(re.findall(r"[\"`]((?:continual|plasticity|speed)/\w+)", code)):
        assert f"`{name}`" in text, f"{name} is missing in docs/metrics.md"


def section(target: str, start: Path = DOCS) -> str:
    """What stands under the heading that `page.md#anchor` names, up to the next one of its rank."""
    page, _, anchor = target.partition("#")
    lines = (start / page).read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("#") and slug(line) == anchor)
    rank = len(lines[at].split()[0])
    end = next((i for i in range(at + 1, len(lines)) if re.match(rf"#{{1,{rank}}} ", lines[i])), len(lines))
    return "\n".join(lines[at:end])


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


#: the rows of the page of negative results that have a command
NEGATIVE = [
    line
    for line in (DOCS / "negative.md").read_text().partition("each with its command")[2].splitlines()
    if "](" in line and line.startswith("|")
]


@pytest.mark.parametrize("row", NEGATIVE, ids=lambda row: row.strip("| ")[:40])
def test_every_figure_of_a_negative_result_stands_where_it_comes_from(row: str) -> None:
    _, figure, beside, command, place = (cell.strip() for cell in row.strip().strip("|").split("|"))
    text = section(re.findall(r"\(([^)]*)\)", place)[0])
    figures = re.findall(r"[−]?\d+(?:[.,]\d+)*", figure + " " + beside)
    assert figures or figure == "one, none"
    for number in figures:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", text), f"{number} is not in {place}"
    (line, *_) = re.findall(r"`([^`]*)`", command)
    program, *words = shlex.split(line)
    if program == "python":
        assert (DOCS.parent / words[0]).is_file()
        return
    options, rest = cli.parser().parse_known_args(words)
    overrides = [*getattr(options, "overrides", []), *rest]
    if options.command == "run":
        configs.load(options.config, overrides)
    elif options.command == "compare":
        assert compare.plan(options.config, compare.rows(overrides, options.row), range(1), Path("nowhere"))
    elif options.command == "reproduce":
        assert (DOCS.parent / "benchmarks/published" / f"{options.recipe}.yaml").is_file()
    elif options.command == "bench":
        assert (DOCS.parent / "benchmarks" / f"{options.name}.py").is_file()


@pytest.mark.parametrize("name", reading.bundled())
def test_the_row_of_a_config_has_its_steps_and_figures_that_stand_where_they_come_from(name: str) -> None:
    shows, steps, expect, time = rows("gallery.md")[name]
    assert shows and time and steps == f"{build_stream(configs.load(name)).total_steps:,}"
    sources = [section(target) if "#" in target else "" for target in re.findall(r"\]\((.*?)\)", expect)]
    if "README" in expect:
        sources.append((DOCS.parent / "README.md").read_text())
    for number in re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"\(.*?\)", "", re.sub(r"`.*?`", "", expect))):
        assert any(number in text for text in sources), f"{number} of {name} has no source"


@pytest.mark.parametrize("name", ["chunk", "stream", "strategy"])
def test_a_concept_is_drawn_as_its_script_draws_it(name: str, tmp_path: Path) -> None:
    script = DOCS / "images/concepts.py"
    drawing = {"__name__": "concepts", "__file__": str(tmp_path / "concepts.py")}
    exec(compile(script.read_text(), str(script), "exec"), drawing)
    drawing[name]()  # type: ignore[operator]
    drawn = (tmp_path / f"concept_{name}.svg").read_text()
    assert drawn == (DOCS / f"images/concept_{name}.svg").read_text()
    ElementTree.fromstring(drawn)
    assert f"images/concept_{name}.svg" in (DOCS / "concepts.md").read_text()


def test_every_page_is_in_the_index() -> None:
    index, nav = (DOCS / "index.md").read_text(), (DOCS.parent / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        path = page.relative_to(DOCS).as_posix()
        assert path in nav
        assert path == "index.md" or f"({path})" in index
