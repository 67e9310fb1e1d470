"""Charts of two axes that are neither of them time: points on a plane, and a map of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lifelong.agent.report.svg import WIDTH, colour, finite, grid, number, opened, text, ticks

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 330, 50, 18, 30, 40


@dataclass
class Points:
    """Points of one colour.

    Args:
        label: their name.
        place: their colour, see `agent.report.colours`.
        at: (x, y) of each.
        told: what is said of each.
        open: they are drawn as rings.
        joined: they are one line.
        size: radius.
    """

    label: str
    place: int
    at: Sequence[Sequence[float]]
    told: Sequence[str] = ()
    open: bool = False
    joined: bool = False
    size: float = 2.6


def plane_chart(
    title: str,
    groups: Sequence[Points],
    x_label: str,
    y_label: str,
    curves: Sequence[Sequence[Sequence[float]]] = (),
    ends: tuple[float, float, float, float] | None = None,
) -> str:
    """Points on a plane.

    Args:
        title: heading.
        groups: the points.
        x_label: what the x-axis is.
        y_label: what the y-axis is, written above it.
        curves: of no colour, behind them.
        ends: (lowest x, highest x, lowest y, highest y); default: those of the points, with a margin.
    """
    at = [point for group in groups for point in group.at]
    ends = ends or (*_ends([x for x, _ in at]), *_ends([y for _, y in at]))
    low_x, high_x, low_y, high_y = ends
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * (x - low_x) / (high_x - low_x), TOP + tall * (high_y - y) / (high_y - low_y)

    def path(points: Sequence[Sequence[float]]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)

    out = [opened(title, HEIGHT, f"{title}: {', '.join(dict.fromkeys(group.label for group in groups))}")]
    out += [grid(place(low_x, t)[1], number(t), LEFT) for t in ticks(low_y, high_y) if low_y <= t <= high_y]
    shown = [t for t in ticks(low_x, high_x) if low_x <= t <= high_x]
    out += [text(place(t, low_y)[0], TOP + tall + 15, number(t), "soft", "middle") for t in shown]
    out.append(text(LEFT + wide / 2, HEIGHT - 6, x_label, "soft", "middle"))
    out.append(text(LEFT, TOP - 6, y_label, "soft", "start"))
    out += [f'<polyline points="{path(curve)}" class="curve"/>' for curve in curves]
    for group in groups:
        if group.joined:
            body = f'<polyline class="thin" points="{path(group.at)}" stroke="{colour(group.place)}"/>'
        else:
            body = "".join(_dot(group, index, *place(*point)) for index, point in enumerate(group.at))
        out.append(f'<g data-of="{escape(group.label)}">{body}</g>')
    return "".join(out) + "</svg>"


def heat_chart(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    row_label: str = "",
    column_label: str = "",
    ends: tuple[float, float] | None = None,
) -> str:
    """A value for every pair of a row and a column: the fuller a cell the higher, and the number in it.

    Args:
        title: heading.
        rows: names, from above.
        columns: names, from the left.
        values: one a cell; a cell without one stays empty.
        row_label: what the rows are, written above them.
        column_label: what the columns are, written below them.
        ends: the value of an empty and of a full cell; default: the lowest and the highest.
    """
    there = [v for row in values for v in row if finite(v)]
    low, high = ends or (min(there, default=0.0), max(there, default=1.0))
    left = min(150.0, 16 + 6.4 * max(len(name) for name in rows))
    wide = (WIDTH - left - RIGHT) / len(columns)
    row_high = max(24.0, min(40.0, wide * 0.7))
    top = TOP + (14 if row_label else 0)
    tall, height = row_high * len(rows), top + row_high * len(rows) + BOTTOM
    out = [
        opened(title, height, f"{title}: {row_label or 'rows'} {', '.join(rows)}; {column_label} {', '.join(columns)}")
    ]
    if row_label:
        out.append(text(0, top - 8, f"{row_label} ↓", "soft", "start"))
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + i * row_high
        out.append(text(left - 8, y + row_high / 2 + 4, _short(name, left - 10), "", "end"))
        for j, value in enumerate(line):
            x = left + j * wide
            if not finite(value):
                out.append(
                    f'<rect class="blank" x="{x:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{row_high - 2:.1f}"/>'
                )
                continue
            full = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5
            told = escape(f"{name}, {columns[j]}: {value:.4g}")
            out.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{row_high - 2:.1f}" '
                f'fill-opacity="{0.06 + 0.94 * full:.3f}"><title>{told}</title></rect>'
            )
            if wide > 30:
                shown = f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
                style = "tiny on" if full > 0.5 else "tiny"
                out.append(text(x + wide / 2 - 1, y + row_high / 2 + 3, shown, style, "middle"))
    for j, name in enumerate(columns):
        out.append(text(left + j * wide + wide / 2, top + tall + 14, _short(name, wide), "soft", "middle"))
    if column_label:
        out.append(text(left + (WIDTH - left - RIGHT) / 2, height - 8, column_label, "soft", "middle"))
    return "".join(out) + "</svg>"


def _dot(group: Points, index: int, x: float, y: float) -> str:
    said = escape(group.told[index] if group.told else group.label)
    paint = colour(group.place)
    style = (
        f'fill="var(--paper)" stroke="{paint}" stroke-width="2"' if group.open else f'fill="{paint}" fill-opacity=".65"'
    )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{group.size}" {style}><title>{said}</title></circle>'


def _ends(values: Sequence[float]) -> tuple[float, float]:
    there = [v for v in values if math.isfinite(v)]
    low, high = min(there, default=0.0), max(there, default=1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _short(name: str, room: float) -> str:
    letters = max(2, int(room / 6.4))
    return name if len(name) <= letters else name[: letters - 1] + "…"
