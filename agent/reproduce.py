"""`lifelong reproduce`: published tables made again (see `agent.published`). Torch is imported when runs are made."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lifelong.agent import compare
from lifelong.agent.errors import ConfigError
from lifelong.agent.files import make_folder, write, write_json
from lifelong.agent.published import BUDGETS, load, recipes


def declare(commands: Any) -> Any:
    """Add the command to those of the command line."""
    made = commands.add_parser("reproduce", help="make a published table again")
    made.add_argument("recipe", metavar="NAME", nargs="?", help="of a recipe, see --list")
    made.add_argument("--list", action="store_true", help="the recipes, with what came out")
    made.add_argument("--budget", choices=BUDGETS, default="small", help="default small")
    made.add_argument("--parallel", type=int, metavar="N", help="runs at once; default: the number of cores")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs; default reproduce/<name>/<budget>")
    made.add_argument("--keep", action="store_true", help="put result, figure and page into the source tree")
    return made


def command(options: argparse.Namespace) -> int:
    """Run it; the same command goes on after a stop."""
    if options.list or options.recipe is None:
        print("\n".join(_listed()))
        return 0
    if options.parallel is not None and options.parallel < 1:
        raise ConfigError(f"--parallel is {options.parallel}; it must be at least 1")
    recipe, budget = load(options.recipe), options.budget
    out: Path = (options.out or Path("reproduce") / recipe.name / budget).absolute()
    make_folder(out)
    file = out / f"{recipe.name}.yaml"
    write(file, yaml.safe_dump(recipe.config, sort_keys=False))
    variants = recipe.variants(budget)
    runs = compare.plan(str(file), list(variants.values()), recipe.budgets[budget].seeds, out)
    from lifelong.agent.report import published, tables
    from lifelong.agent.runtime.session import stop_signals

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr)

    with stop_signals() as stop:
        if not compare.train(str(file), runs, options.parallel or os.cpu_count() or 1, tell, stop):
            print("stopped; what was trained is saved; the same command goes on", file=sys.stderr)
            return 3
    result = published.result(recipe, budget, runs)
    tables.console().print(published.summary(recipe, result))
    write_json(out / "result.json", result)
    published.figure(recipe, budget, runs, out / "figure.png")
    print(f"result: {out / 'result.json'}\nfigure: {out / 'figure.png'}")
    if options.keep:
        write_json(published.kept(recipe.name), result)
        published.figure(recipe, budget, runs, published.kept_figure(recipe.name))
        write(published.PAGE, published.page())
    return 0


def _listed() -> Iterator[str]:
    from lifelong.agent.report import published

    for name in recipes():
        recipe, path = load(name), published.kept(name)
        verdict = published.verdict(published.read(path)) if path.is_file() else "not made yet"
        yield f"{name:<18} {recipe.title}: {verdict}"
