"""`lifelong reproduce`: published tables made again (see `agent.published`). Torch is imported when runs are made."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from lifelong.agent import compare
from lifelong.agent.compare import Run
from lifelong.agent.errors import ConfigError
from lifelong.agent.files import make_folder, read_json, write, write_json
from lifelong.agent.published import BUDGETS, RECIPES, Recipe, load, recipes


def declare(commands: Any) -> Any:
    """Add the command to those of the command line."""
    made = commands.add_parser("reproduce", help="make a published table again")
    made.add_argument("recipe", metavar="NAME", nargs="?", help="of a recipe, see --list, or the path of one")
    made.add_argument("--list", action="store_true", help="the recipes, with what came out")
    made.add_argument("--check", action="store_true", help="make the verdict again from what is stored (no NAME: all)")
    made.add_argument("--budget", choices=BUDGETS, default="small", help="default small")
    made.add_argument("--parallel", type=int, metavar="N", help="runs at once; default: the number of cores")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs; default reproduce/<name>/<budget>")
    made.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="take rows from a JSON of `compare` or `bench`"
    )
    made.add_argument("--keep", action="store_true", help="put result, figure, page and board into the source tree")
    return made


def command(options: argparse.Namespace) -> int:
    """Run it; the same command goes on after a stop."""
    if options.check:
        names = [options.recipe] if options.recipe else list(recipes())
        return max([_check(load(name), options) for name in names])
    if options.list or options.recipe is None:
        from lifelong.agent.report import board

        print("\n".join(board.listed()))
        return 0
    if options.parallel is not None and options.parallel < 1:
        raise ConfigError(f"--parallel is {options.parallel}; it must be at least 1")
    recipe = load(options.recipe)
    if options.keep and recipe.path.parent != RECIPES:
        raise ConfigError(f"--keep is for recipes of the source tree, and {recipe.path} is none")
    from lifelong.agent.report import board, published, published_figure, tables
    from lifelong.agent.runtime.session import stop_signals

    out = _out(recipe, options)
    stored = published.stored_rows(recipe, options.budget, options.source) if options.source else {}
    config, runs = _plan(recipe, options.budget, out, stored)

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr)

    begun = _begun(out)
    with stop_signals() as stop:
        if not compare.train(config, runs, options.parallel or os.cpu_count() or 1, tell, stop):
            print("stopped; what was trained is saved; the same command goes on", file=sys.stderr)
            return 3
    result = published.result(recipe, options.budget, runs, stored, begun)
    tables.console().print(board.summary(recipe, result))
    write_json(out / "result.json", result)
    published_figure.figure(recipe, result, runs, out / "figure.png")
    print(f"result: {out / 'result.json'}\nfigure: {out / 'figure.png'}")
    if options.keep:
        write_json(published.kept(recipe.name), result)
        published_figure.figure(recipe, result, runs, published.kept_figure(recipe.name))
        write(board.PAGE, board.page())
        write(board.BOARD, board.board())
    return 0


def _out(recipe: Recipe, options: argparse.Namespace) -> Path:
    out: Path = (options.out or Path("reproduce") / recipe.name / options.budget).absolute()
    return out


def _begun(out: Path) -> Mapping[str, str]:
    """Date and commit of the first start in a folder."""
    from lifelong.agent.report import published

    make_folder(out)
    file = out / "begun.json"
    if not file.is_file():
        write_json(file, {"date": date.today().isoformat(), "commit": published.commit()})
    begun: Mapping[str, str] = read_json(file, {"date": str, "commit": str})
    return begun


def _plan(recipe: Recipe, budget: str, out: Path, stored: Mapping[str, Mapping[str, Any]]) -> tuple[str, Sequence[Run]]:
    """The config of a recipe and its runs, without those of stored seeds; a script's runs are calls of it."""
    variants, seeds = recipe.variants(budget), recipe.budgets[budget].seeds
    if recipe.script:
        runs = [
            Run(row, seed, out / compare.folder_name(row) / str(seed), {}, script=recipe.path.parent / recipe.script)
            for seed, row in itertools.product(seeds, variants.values())
        ]
        return recipe.name, runs
    config = str(recipe.config)
    if isinstance(recipe.config, dict):
        make_folder(out)
        config = str(out / f"{recipe.name}.yaml")
        write(Path(config), yaml.safe_dump(recipe.config, sort_keys=False))
    there = {variants[label]: row["seeds"] for label, row in stored.items()}
    planned = compare.plan(config, list(variants.values()), seeds, out)
    return config, [run for run in planned if run.seed not in there.get(run.row, ())]


def _check(recipe: Recipe, options: argparse.Namespace) -> int:
    """Say the verdict of the stored numbers; 1 if what was stored, or a run that is at hand, says otherwise."""
    from lifelong.agent.report import board, published

    out = _out(recipe, options)
    path = published.kept(recipe.name) if recipe.path.parent == RECIPES else out / "result.json"
    if not path.is_file():
        print(f"{recipe.name}: not made yet")
        return 0
    found = published.read(path)
    again = [run for run in _plan(recipe, found["budget"], out, {})[1] if run.finished] if out.is_dir() else []
    wrong = published.differences(recipe, found, again)
    for check, holds in zip(recipe.checks, published.held(recipe, found["rows"]), strict=True):
        print(f"{'holds' if holds else 'does not hold'}: {check.text}")
    basis = f"stored numbers and {len(again)} runs in {out}" if again else "stored numbers"
    print(f"{recipe.name}: {board.verdict(recipe, found)}, from {basis}")
    for sentence in wrong:
        print(f"{recipe.name}: {sentence}", file=sys.stderr)
    return 1 if wrong else 0
