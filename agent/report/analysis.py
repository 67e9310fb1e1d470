"""The page of `lifelong analyse`: what a trained policy is like inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lifelong.agent.analysis.ordinal import envelope
from lifelong.agent.files import write
from lifelong.agent.report.page import render
from lifelong.agent.report.planes import Points, heat_chart, plane_chart
from lifelong.agent.report.svg import Line, colour, line_chart
from lifelong.agent.report.tables import Cells, number_text

#: what is said of a number that is not there
NONE = "–"


def page(found: Mapping[str, Any], path: Path) -> None:
    """Write what `analyse` found as one page that needs no other file."""
    from markupsafe import Markup

    tasks = found["tasks"]
    drawn = {
        "order": order_charts(found),
        "drift": drift_charts(found),
        "overlap": [
            heat_chart(layer, tasks, tasks, _numbers(values), ends=(0.0, 1.0))
            for layer, values in found["overlap"].items()
            if len(tasks) > 1
        ],
        "points": [_points_chart(one, tasks.index(one["task"])) for one in found["fixed_points"]],
    }
    content = {
        "title": f"Inside {found['name']}, seed {found['seed']}",
        "date": date.today().isoformat(),
        "found": found,
        "layers": layer_cells(found),
        "points": point_cells(found),
        "tasks": [{"label": task, "colour": colour(index)} for index, task in enumerate(tasks)],
        "charts_of": {name: [Markup(chart) for chart in charts] for name, charts in drawn.items()},
    }
    write(path, render("analysis.html.j2", **content))


def layer_cells(found: Mapping[str, Any]) -> Cells:
    """One row a layer and task."""
    rows = [
        [
            row["layer"],
            row["task"],
            f"{row['units']:,}",
            f"{row['effective_rank']:.1f}",
            f"{row['effective_rank'] / row['units']:.2f}",
            f"{row['dormant_units']:.1%}",
        ]
        for row in sorted(found["layers"], key=lambda row: list(found["overlap"]).index(row["layer"]))
    ]
    return Cells(["layer", "task", "units", "effective rank", "of all", "dormant units"], rows, [], left=2)


def order_cells(found: Mapping[str, Any]) -> Cells:
    """One row a task: medians over the numbers of the memory, at the shortest delay and at the longest."""
    rows = []
    for one in found["trajectories"]:
        for place in sorted({0, len(one["delays"]) - 1}):
            medians = [number_text(median(one[name][place])) for name in ("entropy", "complexity")]
            rows.append([one["task"], str(one["delays"][place]), *medians])
    return Cells(["task", "delay", "entropy", "complexity"], rows, [], left=1)


def point_cells(found: Mapping[str, Any]) -> Cells:
    """One row a fixed or slow point."""
    rows = [
        [
            one["task"],
            point["kind"],
            str(point["starts"]),
            f"{point['speed']:.1e}",
            f"{point['radius']:.6f}",
            str(point["growing"]),
        ]
        for one in found["fixed_points"]
        for point in one["points"]
    ]
    columns = ["task", "kind", "starts", "speed", "largest |eigenvalue|", "outside the unit circle"]
    return Cells(columns, rows, [], left=2)


def drift_cells(found: Mapping[str, Any]) -> Cells:
    """One row a layer: how alike it was at the beginning to what it is, task by task."""
    first = {layer: rows[0] for layer, rows in found["drift"]["layers"].items()}
    rows = [[layer, *(NONE if v is None else number_text(v) for v in values)] for layer, values in first.items()]
    return Cells(["layer", *found["tasks"]], rows, [], left=1)


def order_charts(found: Mapping[str, Any]) -> list[str]:
    """The plane of entropy and complexity at a delay of one step, and both over the delay."""
    if not found["trajectories"]:
        return []
    groups = []
    for index, one in enumerate(found["trajectories"]):
        at = list(zip(one["entropy"][0], one["complexity"][0], strict=True))
        told = [f"{one['task']}, number {k}: H {h:.2f}, C {c:.2f}" for k, (h, c) in enumerate(at)]
        groups.append(Points(one["task"], index, at, told))
    curves = [curve.tolist() for curve in envelope(found["order"])]
    highest = max(c for _, c in curves[1])
    plane = plane_chart(
        "each number of the memory, delay of one step",
        groups,
        "permutation entropy H",
        "statistical complexity C",
        curves,
        (0.0, 1.0, 0.0, 1.05 * highest),
    )
    over = [
        line_chart(
            f"{title} (line: median; band: middle half)",
            [_over_delays(one, index, name) for index, one in enumerate(found["trajectories"])],
            x_label="delay, log₂ of steps",
        )
        for title, name in (("H over the delay", "entropy"), ("C over the delay", "complexity"))
    ]
    return [plane, *over]


def _over_delays(one: Mapping[str, Any], place: int, name: str) -> Line:
    low, middle, high = np.quantile(np.array(one[name]), (0.25, 0.5, 0.75), axis=1).tolist()
    return Line(one["task"], place, np.log2(one["delays"]).tolist(), middle, low, high)


def drift_charts(found: Mapping[str, Any]) -> list[str]:
    """A chart a layer, a line a task."""
    drift = found["drift"]
    return [
        line_chart(
            layer,
            [
                Line(task, index, drift["steps"], [row[index] for row in _numbers(rows)])
                for index, task in enumerate(found["tasks"])
            ],
            [],
            unit=True,
        )
        for layer, rows in drift["layers"].items()
    ]


def _points_chart(one: Mapping[str, Any], place: int) -> str:
    """Trajectories of a task with the points on top of them; full ones are stable."""
    lines = [Points(one["task"], place, way, joined=True) for way in one["trajectories"]]
    points = [
        Points(
            one["task"],
            place,
            [point["at"]],
            [f"{point['kind']}, {point['starts']} starts, largest |eigenvalue| {point['radius']:.6f}"],
            open=point["kind"] not in ("stable", "marginal"),
            size=6,
        )
        for point in one["points"]
    ]
    title = (
        f"{one['task']}: {len(points)} point{'' if len(points) == 1 else 's'}, {one['explained']:.0%} of the variance"
    )
    return plane_chart(title, [*lines, *points], "first principal component", "second")


def _numbers(values: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[float("nan") if value is None else value for value in row] for row in values]
