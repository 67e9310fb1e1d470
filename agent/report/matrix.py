"""The evaluation matrix as a picture: task x time. Drawn by Pillow, which a run in training has time for."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from lifelong.agent.report.svg import number, ticks
from lifelong.agent.runtime.metrics import Evaluations

#: more columns than these have no numbers in their cells
_NUMBERED = 18
_WIDTH, _ROW, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 44, 150, 20, 10, 58
#: from a performance of 0 to 1: pale yellow, green, blue, dark blue
_COLOURS = np.array([(255, 255, 217), (127, 205, 187), (34, 94, 168), (8, 29, 88)], float)
_INK = (51, 51, 51)


def plot_matrix(evaluations: Evaluations, starts: Sequence[int]) -> tuple[bytes, int, int]:
    """Performance of every task (rows) at every evaluation (columns, as wide as the time since the last one), with a
    line where a stretch of training begins.

    Args:
        evaluations: at least two points.
        starts: steps at which the stretches begin.

    Returns:
        The PNG, its width and its height in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    tasks, steps = evaluations.tasks, evaluations.steps
    performance = evaluations.performance()
    height = _TOP + _ROW * len(tasks) + _BOTTOM
    image = Image.new("RGB", (_WIDTH, height), "white")
    draw, large, small = ImageDraw.Draw(image), ImageFont.load_default(17), ImageFont.load_default(14)
    edges = [steps[0] - float(np.median(np.diff(steps))) / 2, *steps]  # a cell is what was trained before it
    bottom = _TOP + _ROW * len(tasks)

    def at(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - edges[0]) / max(edges[-1] - edges[0], 1e-9)

    for row, task in enumerate(tasks):
        top = _TOP + row * _ROW
        draw.text((_LEFT - 10, top + _ROW / 2), task if len(task) <= 15 else task[:14] + "…", _INK, large, "rm")
        for point in range(len(steps)):
            value = float(performance[point, row])
            if not np.isfinite(value):
                continue
            left, right = at(edges[point]), at(edges[point + 1])
            draw.rectangle((left, top, max(right - 1, left), top + _ROW - 3), _colour(value))
            if len(steps) <= _NUMBERED and right - left >= 34:
                shown = f"{value + 0.0:.2f}".replace("-0.00", "0.00")
                ink = "white" if value > 0.5 else _INK
                draw.text(((left + right) / 2, top + _ROW / 2 - 1), shown, ink, small, "mm")
    for start in starts:
        if steps[0] < start < steps[-1]:
            draw.line((at(start) - 1, 2, at(start) - 1, bottom + 4), (213, 94, 0), 4)
    for tick in ticks(steps[0], steps[-1], 6):
        draw.text((at(tick), bottom + 14), number(tick), _INK, small, "mm")
    told = "environment steps; from pale (0, useless) to dark (1, solved); lines: another stretch of training"
    draw.text((_LEFT, bottom + 38), told, _INK, small, "lm")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), _WIDTH, height


def _colour(performance: float) -> tuple[int, int, int]:
    place = min(max(performance, 0.0), 1.0) * (len(_COLOURS) - 1)
    below = min(int(place), len(_COLOURS) - 2)
    red, green, blue = _COLOURS[below] + (place - below) * (_COLOURS[below + 1] - _COLOURS[below])
    return round(red), round(green), round(blue)
