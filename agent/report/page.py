"""One self-contained HTML page of runs. jinja2 is imported where it is used."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from lifelong.agent.difference import between, from_defaults, text, words
from lifelong.agent.files import make_folder, write
from lifelong.agent.report.colours import places
from lifelong.agent.report.figures import figures, run_figure
from lifelong.agent.report.plots import plot_comparison, plot_run
from lifelong.agent.report.runs import Group, RunData, by_config, group_runs, load_runs, number
from lifelong.agent.report.svg import colour
from lifelong.agent.report.tables import (
    change_cells,
    comparison_cells,
    cost_cells,
    number_text,
    run_cells,
    runs_csv,
    table,
)


def html(
    runs: Sequence[RunData],
    out_dir: Path,
    groups: Sequence[Group] | None = None,
    title: str = "lifelong report",
    sentences: Sequence[str] = (),
) -> Path:
    """Write `report.html`, one file that needs no other, into `out_dir`, and the plots for papers into `out_dir/plots`.

    Everything in it is read off the run folders.

    Args:
        runs: the runs.
        out_dir: where the page goes.
        groups: the rows of a comparison, the first one being what others are held against; by default runs are grouped
            by their configs, the best first.
        title: heading.
        sentences: what is said of the groups.

    Returns:
        Path of the page.
    """
    from markupsafe import Markup

    make_folder(out_dir)
    sections = []
    for place, (name, members) in enumerate(by_config(runs).items(), start=1):
        chosen = [group for group in groups if group.config == name] if groups else group_runs(members)
        if not chosen:
            continue
        shown = [run for group in chosen for run in group.runs]
        prefix = f"{place}-{_slug(name)}"
        plot_comparison(shown, out_dir / "plots" / f"{prefix}.png")
        pages: list[dict[str, Any]] = []
        for group in chosen:
            for run in group.runs:
                file = f"{prefix}-{len(pages) + 1}-{_slug(run.strategy)}-seed-{run.summary['seed']}.png"
                plot_run(run, out_dir / "plots" / file)
                pages.append(_run_page(run, group.label))
        drawn = {key: [Markup(chart) for chart in charts] for key, charts in figures(chosen).items()}
        sections.append(
            {
                "name": name,
                "sentences": sentences,
                "cells": comparison_cells(shown, runs, chosen, against_first=groups is not None).without_first(),
                "figures": drawn,
                "groups": _legend(chosen),
                "cost": cost_cells(chosen),
                "seeds": max(group.seeds for group in chosen),
                "runs": pages,
            }
        )
    path = out_dir / "report.html"
    table = "data:text/csv;base64," + base64.b64encode(runs_csv(runs).encode()).decode()
    content = {"title": title, "date": date.today().isoformat(), "csv": Markup(table)}
    write(path, render("report.html.j2", sections=sections, count=len(runs), **content))
    return path


def _legend(groups: Sequence[Group]) -> list[dict[str, str]]:
    """The rows with their colours, and in what each differs from the first."""
    first = groups[0].runs[0].summary["config"]
    legend = []
    for group, place in zip(groups, places([group.label for group in groups]), strict=True):
        found = words(between(group.runs[0].summary["config"], first))
        differs = "what the others are compared with here" if group is groups[0] else found or "nothing but the seed"
        legend.append({"label": group.label, "colour": colour(place), "differs": differs})
    return legend


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


def _run_page(run: RunData, label: str) -> dict[str, Any]:
    """What the page shows of one run."""
    from markupsafe import Markup

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
        "plot": Markup(run_figure(run)),
        "chosen": [(key, text(value), usual) for key, value, usual in _chosen(summary["config"])],
        "config": yaml.safe_dump(summary["config"], sort_keys=False),
        "versions": summary["versions"],
        "machine": summary["machine"],
    }


def _chosen(config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return from_defaults(config) if "stream" in config else []


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
