"""`lifelong analyse`: what the policy of a run is like inside, as tables, a page and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError
from lifelong.agent.trust import check_run, trusted


def declare(commands: Any) -> Any:
    """Add the command to those of the command line."""
    made = commands.add_parser(
        "analyse", help="look inside the policy of a run: layers, trajectories, drift, fixed points"
    )
    made.add_argument("folder", metavar="RUN", type=Path, help="run folder, such as runs/quickstart/0")
    made.add_argument("--steps", type=int, default=256, metavar="N", help="lived in every task; default 256")
    made.add_argument("--copies", type=int, default=32, metavar="N", help="side by side; default 32")
    made.add_argument(
        "--fixed-points",
        type=int,
        default=0,
        metavar="N",
        help="seek them from N visited states of every task; default 0",
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of these states; default 0")
    made.add_argument("--out", type=Path, metavar="DIR", help="where analysis.html and analysis.json go; default RUN")
    made.add_argument("--trust", action="store_true", help="import code that a run folder names")
    return made


def command(options: argparse.Namespace) -> int:
    """Look inside, print the tables and write the files."""
    folder: Path = options.folder
    check_run(folder)
    for name, least in (("steps", 2), ("copies", 1), ("fixed_points", 0)):
        if vars(options)[name] < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {vars(options)[name]}; it must be at least {least}")
    config = configs.load(str((folder / "config.yaml").resolve()))
    trusted(config, folder, options)
    configs.find_own_modules(config)
    from lifelong.agent.analysis.analysis import analyse
    from lifelong.agent.files import make_folder, write_json
    from lifelong.agent.report import analysis, tables

    found = analyse(folder, steps=options.steps, copies=options.copies, starts=options.fixed_points, seed=options.seed)
    out: Path = options.out or folder
    make_folder(out)
    write_json(out / "analysis.json", found)
    analysis.page(found, out / "analysis.html")
    console = tables.console()
    shown = {
        "layers": analysis.layer_cells(found),
        "order of the trajectories (medians)": analysis.order_cells(found),
        "likeness of the untrained policy (CKA)": analysis.drift_cells(found),
        "fixed points": analysis.point_cells(found),
    }
    for title, cells in shown.items():
        if cells.rows:
            console.print(f"\n[bold]{title}[/]")
            console.print(cells.rich())
    console.print(f"\npage: {out / 'analysis.html'}\ndata: {out / 'analysis.json'}")
    return 0
