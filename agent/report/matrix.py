"""The evaluation matrix as a picture: task x time. matplotlib is imported where it is used."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from lifelong.agent.report.plots import INK, new_figure
from lifelong.agent.runtime.metrics import Evaluations

#: more columns than these have no numbers in their cells
_NUMBERED = 18


def plot_matrix(evaluations: Evaluations, starts: Sequence[int]) -> tuple[bytes, int, int]:
    """Performance of every task (rows) at every evaluation (columns, as wide as the time since
    the last one), with a line where a stretch
    of training begins.

    Args:
        evaluations: at least two points.
        starts: steps at which the stretches begin.

    Returns:
        The PNG, its width and its height in pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize
    from matplotlib.ticker import EngFormatter

    tasks, steps = evaluations.tasks, np.array(evaluations.steps, dtype=float)
    performance = evaluations.performance().T
    width, height = 9.0, 1.2 + 0.42 * min(len(tasks), 40)
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    edges = np.concatenate([[steps[0] - float(np.median(np.diff(steps))) / 2], steps])  # what was trained before it
    norm = Normalize(0, 1) if all(evaluations.scored) else Normalize()  # returns may be of any size
    shown_as = np.ma.masked_invalid(performance)
    drawn = axes.pcolormesh(edges, np.arange(len(tasks) + 1), shown_as, cmap="YlGnBu", norm=norm)
    for start in starts:
        if steps[0] < start < steps[-1]:
            axes.axvline(start, color="white", linewidth=3.5)
            axes.axvline(start, color=INK, linewidth=1.2)
    if len(steps) <= _NUMBERED:
        for task, column in np.argwhere(np.isfinite(performance)):
            value = performance[task, column]
            middle = (edges[column] + edges[column + 1]) / 2
            if edges[column + 1] - edges[column] >= 0.4 * (edges[-1] - edges[0]) / len(steps):
                ink = "white" if norm(value) > 0.6 else INK
                shown = f"{value + 0.0:.2f}".replace("-0.00", "0.00")
                axes.text(middle, task + 0.5, shown, ha="center", va="center", fontsize=8, color=ink)
    axes.set_yticks(np.arange(len(tasks)) + 0.5, [task if len(task) <= 24 else task[:23] + "…" for task in tasks])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps; lines: another stretch of training begins", fontsize=9, color=INK)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, pad=0.01, aspect=max(6, 3 * height))
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8, length=0)
    bar.set_label("performance", fontsize=9, color=INK)
    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    canvas.print_png(file, metadata={"Software": None})
    return file.getvalue(), *canvas.get_width_height()
