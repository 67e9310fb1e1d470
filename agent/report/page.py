"""One self-contained HTML page of runs. jinja2 is imported where it is used."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from lifelong.agent.files import make_folder, write
from lifelong.agent.report.plots import plot_comparison, plot_run
from lifelong.agent.report.runs import RunData, by_config, group_runs, load_runs, number
from lifelong.agent.report.tables import change_cells, comparison_cells, number_text, run_cells, table


def html(runs: Sequence[RunData], out_dir: Path) -> Path:
    """Write `report.html` (one file that embeds the plots) into `out_dir`, and the plots into `out_dir/plots`.

    Returns:
        Path of the page.
    """
    make_folder(out_dir)
    sections = []
    for place, (name, members) in enumerate(by_config(runs).items(), start=1):
        prefix = f"{place}-{_slug(name)}"
        plot = out_dir / "plots" / f"{prefix}.png"
        plot_comparison(members, plot)
        pages: list[dict[str, Any]] = []
        for group in group_runs(members):
            for run in group.runs:
                file = f"{prefix}-{len(pages) + 1}-{_slug(run.strategy)}-seed-{run.summary['seed']}.png"
                pages.append(_run_page(run, group.label, out_dir / "plots" / file))
        sections.append(
            {"name": name, "cells": comparison_cells(members, runs).without_first(), "plot": embed(plot), "runs": pages}
        )
    path = out_dir / "report.html"
    write(path, render("report.html.j2", sections=sections, count=len(runs)))
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
        "average_performance": number_text(number(summary["average_performance"])),
        "forgetting": number_text(number(summary["forgetting"])),
        "env_steps": f"{summary['env_steps']:,}",
        "steps_per_second": f"{number(summary['steps_per_second']):,.0f}",
        "cells": run_cells(summary),
        "changes": change_cells(summary),
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
                changes = change_cells(run.summary)
                if changes is not None:
                    out.print(Text("\nchanged while it was trained", style="bold"))
                    out.print(changes.rich())
        if len(members) > 1:
            out.print(Text(f"\n{members[0].config_name}: median (min..max) over seeds", style="bold"))
            out.print(comparison_cells(members, runs).without_first().rich())
    return html(runs, out_dir)
