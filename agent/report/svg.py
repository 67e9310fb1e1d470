"""Charts as SVG inside a page: their colours are the page's, so they follow its light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from lifelong.agent.report.colours import DASHES, PALETTE

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 30, 38


@dataclass
class Line:
    """A line of a chart with a band around it.

    Args:
        label: its name.
        place: its colour, see `agent.report.colours`.
        x: where it has points.
        y: their heights; not a number where there is none.
        low: the lower end of the band.
        high: the upper one.
    """

    label: str
    place: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass
class Stretch:
    """A stretch of the x-axis that is named above the chart."""

    start: float
    end: float
    name: str


@dataclass
class Bar:
    """Bars of one colour, one for each name: a value, a whisker and a mark."""

    label: str
    place: int
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    marks: Sequence[float]
    notes: Sequence[str]


def colour(place: int) -> str:
    """The colour of a place of the palette, as the page knows it."""
    return f"var(--c{place % len(PALETTE)})"


def line_chart(
    title: str,
    lines: Sequence[Line],
    stretches: Sequence[Stretch] = (),
    changes: Iterable[float] = (),
    unit: bool = False,
    x_label: str = "environment steps",
) -> str:
    """Lines over environment steps, or over something else.

    Args:
        title: heading.
        lines: the lines.
        stretches: what is trained when; every second one is shaded.
        changes: where the run was changed: dotted.
        unit: the y-axis holds 0 and 1.
        x_label: what the x-axis is.
    """
    points = [v for line in lines for part in (line.y, line.low or (), line.high or ()) for v in part if finite(v)]
    low, high = (min([*points, *([0] if unit else [])]), max([*points, *([1] if unit else [])])) if points else (0, 1)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    marks = ticks(low, high)
    low, high = min(low, marks[0]), max(high, marks[-1])
    ends = [x for line in lines for x in line.x]
    start, end = min([0.0, *ends]), max([1.0, *ends, *(s.end for s in stretches)])
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at_x(x: float) -> float:
        return LEFT + wide * (x - start) / (end - start)

    def at_y(y: float) -> float:
        return TOP + tall * (high - y) / (high - low)

    step = "step" if x_label == "environment steps" else x_label
    out = [opened(title, HEIGHT, f"{title}: {', '.join(line.label for line in lines)}")]
    for index, stretch in enumerate(stretches):
        x, w = at_x(stretch.start), at_x(stretch.end) - at_x(stretch.start)
        if index % 2:
            out.append(f'<rect class="shade" x="{x:.1f}" y="{TOP}" width="{w:.1f}" height="{tall}"/>')
        if index:
            out.append(f'<line class="border" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + tall}"/>')
        if 6.3 * len(stretch.name) < w:
            out.append(text(x + w / 2, TOP - 4, stretch.name, "soft", "middle"))
    out += [grid(at_y(t), number(t)) for t in marks]
    out += [text(at_x(t), TOP + tall + 15, number(t), "soft", "middle") for t in ticks(start, end, 4)]
    out.append(text(LEFT + wide / 2, HEIGHT - 6, x_label, "soft", "middle"))
    for x in changes:
        out.append(f'<line class="change" x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{TOP}" y2="{TOP + tall}"/>')
    for line in lines:
        body = ""
        if line.low is not None and line.high is not None:
            there = [i for i in range(len(line.x)) if finite(line.low[i]) and finite(line.high[i])]
            around = [(line.x[i], line.high[i]) for i in there] + [(line.x[i], line.low[i]) for i in reversed(there)]
            drawn = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in around)
            body += f'<polygon points="{drawn}" fill="{colour(line.place)}" opacity=".16"/>'
        there = [i for i in range(len(line.x)) if finite(line.y[i])]
        drawn = " ".join(f"{at_x(line.x[i]):.1f},{at_y(line.y[i]):.1f}" for i in there)
        dash = DASHES[line.place // len(PALETTE) % len(DASHES)]
        body += f'<polyline points="{drawn}" stroke="{colour(line.place)}"' + (
            f' stroke-dasharray="{dash}"/>' if dash else "/>"
        )
        if len(there) <= 60:
            body += "".join(
                f'<circle cx="{at_x(line.x[i]):.1f}" cy="{at_y(line.y[i]):.1f}" r="2.4" fill="{colour(line.place)}">'
                f"<title>{escape(line.label)}, {step} {line.x[i]:,.0f}: {line.y[i]:.3g}</title></circle>"
                for i in there
            )
        out.append(f'<g data-of="{escape(line.label)}">{body}</g>')
    return "".join(out) + "</svg>"


def bar_chart(title: str, names: Sequence[str], bars: Sequence[Bar]) -> str:
    """Horizontal bars from 0, grouped by name: the value, a whisker from low to high, and a mark across."""
    thick = 13.0
    group = thick * len(bars) + 10
    tall = group * len(names)
    shown = [v for bar in bars for part in (bar.values, bar.low, bar.high, bar.marks) for v in part if finite(v)]
    low, high = min([0.0, *shown]), max([1.0, *shown])
    marks = ticks(low, high, 5)
    low, high = min(low, marks[0]), max(high, marks[-1])
    left = min(150.0, 16 + 6.4 * max(len(name) for name in names))

    def at(x: float) -> float:
        return left + (WIDTH - left - RIGHT - 6) * (x - low) / (high - low)

    height = TOP + tall + BOTTOM
    out = [opened(title, height, f"{title}: {', '.join(bar.label for bar in bars)}")]
    for tick in marks:
        out.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{TOP}" y2="{TOP + tall:.1f}"/>')
        out.append(text(at(tick), TOP + tall + 15, number(tick), "soft", "middle"))
    for row, name in enumerate(names):
        top = TOP + row * group + 5
        room = int((left - 10) / 6.4)
        out.append(
            text(left - 8, top + (group - 10) / 2 + 4, name if len(name) <= room else name[: room - 1] + "…", "", "end")
        )
    for index, bar in enumerate(bars):
        body = ""
        for row, name in enumerate(names):
            value, mark, y = bar.values[row], bar.marks[row], TOP + row * group + 5 + index * thick
            if not finite(value):
                continue
            told = f"{value:.2f} at the end, {_said(mark)} when learned{bar.notes[row]}"
            told = escape(f"{bar.label}, {name}: {told}")
            x, w = min(at(0), at(value)), abs(at(value) - at(0))
            style = ' opacity=".35"' if bar.notes[row] else ""
            body += (
                f'<g><title>{told}</title><rect x="{x:.1f}" y="{y + 1:.1f}" width="{max(w, 0.8):.1f}" '
                f'height="{thick - 3}" fill="{colour(bar.place)}"{style}/>'
            )
            middle = y + thick / 2 - 0.5
            if finite(bar.low[row]) and bar.high[row] > bar.low[row]:
                body += f'<path class="whisker" d="M{at(bar.low[row]):.1f} {middle:.1f}H{at(bar.high[row]):.1f}"/>'
            if finite(mark):
                body += f'<path class="mark" d="M{at(mark):.1f} {y:.1f}v{thick - 1}"/>'
            body += "</g>"
        out.append(f'<g data-of="{escape(bar.label)}">{body}</g>')
    out.append(f'<line class="axis" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{TOP}" y2="{TOP + tall:.1f}"/>')
    out.append(text(left, height - 6, "bar: at the end · mark: when learned · line: all seeds", "soft", "start"))
    return "".join(out) + "</svg>"


def matrix_chart(
    title: str, tasks: Sequence[str], steps: Sequence[int], values: np.ndarray, borders: Sequence[int]
) -> str:
    """Task x evaluation point; a cell is as wide as the time since the last point, and as full as the performance.

    Args:
        title: heading.
        tasks: names of the rows.
        steps: of the columns.
        values: performance, [points, tasks].
        borders: steps at which another stretch of training begins.
    """
    row, left = 24.0, min(150.0, 16 + 6.4 * max(len(task) for task in tasks))
    first = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 1.0
    edges = [steps[0] - first, *steps]
    wide, tall = WIDTH - left - RIGHT, row * len(tasks)

    def at(x: float) -> float:
        return left + wide * (x - edges[0]) / (edges[-1] - edges[0])

    height = TOP + tall + BOTTOM - 14
    out = [opened(title, height, title)]
    room = int((left - 10) / 6.4)
    for index, task in enumerate(tasks):
        y = TOP + index * row
        out.append(text(left - 8, y + row / 2 + 4, task if len(task) <= room else task[: room - 1] + "…", "", "end"))
        for point in range(len(steps)):
            value = float(values[point, index])
            if not finite(value):
                continue
            x, w = at(edges[point]), at(edges[point + 1]) - at(edges[point])
            full = min(max(value, 0.0), 1.0)
            told = escape(f"{task}, step {steps[point]:,}: {value:.3f}")
            out.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{max(w, 0.4):.1f}" height="{row - 2}" '
                f'fill-opacity="{0.06 + 0.94 * full:.3f}"><title>{told}</title></rect>'
            )
            if w > 24:
                shown = f"{value + 0.0:.2f}".replace("-0.00", "0.00")
                out.append(text(x + w / 2, y + row / 2 + 3, shown, "tiny on" if full > 0.5 else "tiny", "middle"))
    out += [
        f'<line class="edge" x1="{at(border):.1f}" x2="{at(border):.1f}" y1="{TOP - 3}" y2="{TOP + tall:.1f}"/>'
        for border in borders
        if steps[0] < border < steps[-1]
    ]
    out += [text(at(t), height - 8, number(t), "soft", "middle") for t in ticks(steps[0], steps[-1], 4)]
    return "".join(out) + "</svg>"


def number(value: float) -> str:
    """A number of an axis: `500k`, `1.5M`, `0.25`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.4g}"


def _said(value: float) -> str:
    return f"{value:.2f}" if finite(value) else "nothing"


def finite(value: float) -> bool:
    """Whether it can be drawn."""
    return math.isfinite(value)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two ends."""
    raw = (high - low) / max(count - 1, 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)] or [low]


def opened(title: str, height: float, told: str) -> str:
    """The beginning of a chart, with its heading and what is read out of it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(told)}">'
        f'<text class="title" x="0" y="12">{escape(title)}</text>'
    )


def text(x: float, y: float, words: str, cls: str, anchor: str) -> str:
    """Words in a chart."""
    return f'<text class="{cls}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def grid(y: float, label: str, left: float = LEFT) -> str:
    """A line across with a number before it."""
    line = f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + text(left - 6, y + 4, label, "soft", "end")
