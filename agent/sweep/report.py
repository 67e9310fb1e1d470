"""What came of a sweep: sweep.json, tables, plots, one HTML page, and TensorBoard's HParams page."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lifelong.agent.files import write as replace_file
from lifelong.agent.files import write_json
from lifelong.agent.report.page import embed, render
from lifelong.agent.report.planes import heat_chart
from lifelong.agent.report.plots import INK, PALETTE, new_figure, save_figure, strip_axes
from lifelong.agent.report.tables import Cells, number_text
from lifelong.agent.sweep.ledger import Entry, Ledger, Standing, run_status, violations
from lifelong.agent.sweep.plan import EVALUATION, PHASE_FOLDERS, TUNING, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Results:
    """The results of a sweep, all of them read through the ledger.

    Args:
        tuning: candidates of phase one, best first.
        evaluation: the frozen choices in phase two, best first; empty without a second phase.
        verdict: what the ledger says, as sentences.
    """

    tuning: list[Standing]
    evaluation: list[Standing]
    verdict: list[str]


def write(plan: Plan, ledger: Ledger) -> Results:
    """Write sweep.json, report.html, the plots and the HParams pages into the folder of the sweep."""
    folder = ledger.folder
    tuning, evaluation = (ledger.rank(phase, plan.measure, plan.mode) for phase in (TUNING, EVALUATION))
    trials = trial_rows(ledger.entries)
    record = {"entries": len(ledger.entries), "head": ledger.head}
    write_json(
        folder / "sweep.json",
        {
            "name": plan.sweep.name,
            "metric": plan.sweep.metric,
            "mode": plan.mode,
            "protocol": plan.sweep.protocol.kind,
            "ranking": [_plain(standing) for standing in tuning],
            "evaluation": [_plain(standing) for standing in evaluation],
            "trials": trials,
            "ledger": record,
        },
    )
    results = Results(tuning, evaluation, verdict(folder, ledger.entries))
    write_hparams(folder / "hparams", plan.sweep.metric, trials)
    _write_page(plan, folder, results, record)
    return results


def trial_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every run of the sweep: what it was, how it ended, and its final metric if that was read."""
    final = {(e["phase"], e["run"]): e for e in entries if e["event"] == "read" and e["final"]}
    rows = []
    for entry in entries:
        if entry["event"] == "start":
            phase, run = entry["phase"], entry["run"]
            seen = final.get((phase, run), {"value": None, "step": None})
            rows.append(
                {
                    "name": run,
                    "phase": phase,
                    "group": entry["group"],
                    "parameters": entry["parameters"],
                    "seed": entry["seed"],
                    "status": run_status(entries, phase, run),
                    "metric": seen["value"],
                    "env_steps": seen["step"],
                    "folder": f"{PHASE_FOLDERS[phase]}/{run}",
                }
            )
    return rows


def verdict(folder: Path, entries: list[Entry]) -> list[str]:
    """What the ledger proves, or what is wrong with it, as sentences."""
    problems = list(violations(folder, entries))
    if problems:
        return [f"The ledger does not hold: {problem}." for problem in problems]
    sentences = [
        f"The ledger holds: its {len(entries)} entries are one unbroken chain, and the runs are those it names."
    ]
    freeze = next((entry for entry in entries if entry["event"] == "freeze"), None)
    if freeze is not None:
        runs = [e for e in entries if e["event"] == "start" and e["phase"] == EVALUATION]
        sentences.append(
            f"The choice was frozen at {freeze['time']} (entry {freeze['index']}), before any metric of phase two was "
            f"read; its {len(runs)} runs happened once each, with the frozen settings, and with seeds"
            f"{' and tasks' if entries[0]['protocol'] == 'two_phase' else ''} that the tuning did not use."
        )
    return sentences


def _plain(standing: Standing) -> dict[str, Any]:
    return {
        "group": standing.group,
        "parameters": standing.parameters,
        "mean": _defined(standing.mean),
        "standard_error": _defined(standing.standard_error),
        "values": {str(seed): _defined(value) for seed, value in sorted(standing.values.items())},
        "unfinished": standing.unfinished,
    }


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


# ---- tables ----------------------------------------------------------------------------------------------------------


def tuning_cells(tuning: Sequence[Standing]) -> Cells:
    """One row a candidate, best first."""
    rows = [
        [s.group, settings_text(s), str(len(s.values)), mean_text(s), str(s.unfinished) if s.unfinished else ""]
        for s in tuning
    ]
    return Cells(["group", "parameters", "seeds", "mean±s.e.", "unfinished"], rows, [], left=2)


def evaluation_cells(results: Results) -> Cells:
    """One row a group: the frozen choice, what the tuning promised, and what it reached in phase two."""
    rows = []
    for standing in results.evaluation:
        promised = next(s for s in results.tuning if _same(s, standing))
        rows.append(
            [
                standing.group,
                settings_text(standing),
                mean_text(promised),
                mean_text(standing),
                str(len(standing.values)),
            ]
        )
    return Cells(["group", "frozen parameters", "phase one", "phase two", "seeds"], rows, [], left=2)


def _same(a: Standing, b: Standing) -> bool:
    return (a.group, a.parameters) == (b.group, b.parameters)


def settings_text(standing: Standing) -> str:
    """`optimizer.lr=0.001 strategy.0.strength=0.3`: as they are given on the command line."""
    return " ".join(f"{key}={value}" for key, value in standing.parameters.items()) or "–"


def mean_text(standing: Standing) -> str:
    """`0.81 ± 0.02`."""
    if math.isnan(standing.standard_error):
        return number_text(standing.mean)
    return f"{number_text(standing.mean)} ± {number_text(standing.standard_error)}"


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def write_hparams(folder: Path, metric: str, trials: Iterable[dict[str, Any]]) -> None:
    """Rewrite the event files behind TensorBoard's HParams page: one session a run, named like the run.

    The columns are declared once, for all sessions: groups have parameters of their own, and TensorBoard would show
    those of the first session only.
    """
    from tensorboard.plugins.hparams import summary_v2
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    shutil.rmtree(folder, ignore_errors=True)
    measured = [trial for trial in trials if trial["metric"] is not None]
    sessions = {trial["folder"]: _hparams(trial) for trial in measured}
    tag = f"final/{metric}"
    columns = dict.fromkeys(key for facts in sessions.values() for key in facts)
    config = summary_v2.hparams_config_pb(
        [summary_v2.HParam(key, _domain([f[key] for f in sessions.values() if key in f])) for key in columns],
        [summary_v2.Metric(tag)],
    )
    with SummaryWriter(str(folder)) as writer:  # type: ignore[no-untyped-call]
        writer.file_writer.add_summary(config)  # type: ignore[union-attr]
    for trial in measured:
        with SummaryWriter(str(folder / trial["folder"])) as writer:  # type: ignore[no-untyped-call]
            _, start, end = hparams(sessions[trial["folder"]], {tag: trial["metric"]})  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(start)  # type: ignore[union-attr]
            writer.add_scalar(tag, trial["metric"], trial["env_steps"])  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(end)  # type: ignore[union-attr]


def _hparams(trial: dict[str, Any]) -> dict[str, float | str]:
    """The columns of a run. HParams knows numbers and words."""
    facts = {"group": trial["group"], "phase": trial["phase"], "seed": trial["seed"], **trial["parameters"]}
    return {key: float(x) if isinstance(x, (int, float)) else str(x) for key, x in facts.items()}


def _domain(values: Sequence[float | str]) -> Any:
    """Few values are offered one by one, many numbers as an interval."""
    from tensorboard.plugins.hparams import summary_v2

    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values):
        return summary_v2.Discrete(sorted(set(map(str, values))), dtype=str)
    if len(set(numbers)) <= 10:
        return summary_v2.Discrete(sorted(set(numbers)), dtype=float)
    return summary_v2.RealInterval(min(numbers), max(numbers))


# ---- page ------------------------------------------------------------------------------------------------------------


def _write_page(plan: Plan, folder: Path, results: Results, record: dict[str, Any]) -> None:
    from markupsafe import Markup

    plots = folder / "plots"
    tuned = any(plan.spaces.values())
    if tuned:
        plot_tuning(plan, results.tuning, plots / "tuning.png")
    if results.evaluation:
        plot_evaluation(plan, results, plots / "evaluation.png")
    sweep = plan.sweep
    protocols = {
        "two_phase": "Two-phase protocol: tuned on one stream, frozen, and run once per seed on another stream.",
        "k_percent": f"K-percent protocol: tuned on the first {sweep.protocol.percent:g} % of the stream, frozen, and "
        "run once per seed on all of it.",
        "plain": "",
    }
    page = render(
        "sweep.html.j2",
        name=sweep.name,
        run=sweep.run,
        runs=sum(len(s.values) + s.unfinished for s in (*results.tuning, *results.evaluation)),
        metric=sweep.metric,
        mode=plan.mode,
        protocol=protocols[sweep.protocol.kind],
        evaluation=evaluation_cells(results) if results.evaluation else None,
        evaluation_plot=embed(plots / "evaluation.png") if results.evaluation else None,
        tuning=tuning_cells(results.tuning),
        tuning_plot=embed(plots / "tuning.png") if tuned else None,
        maps=[Markup(chart) for chart in trainability_maps(plan, results.tuning)],
        verdict=results.verdict,
        folder=folder,
        config=yaml.safe_dump(plan.to_dict()["sweep"], sort_keys=False),
        **record,
    )
    replace_file(folder / "report.html", page)


def trainability_maps(plan: Plan, tuning: Sequence[Standing]) -> list[str]:
    """For every group that tunes exactly two numbers, each by a list: the mean metric of every pair, as a map. A pair
    that was not tried, or of which no run came to the end, stays empty."""
    maps = []
    for group, space in plan.spaces.items():
        listed = [
            (key, sorted(values)) for key, values in space.items() if isinstance(values, list) and _numbers(values)
        ]
        if len(space) != 2 or len(listed) != 2:
            continue
        (row_key, rows), (column_key, columns) = listed
        mean = {(s.parameters[row_key], s.parameters[column_key]): s.mean for s in tuning if s.group == group}
        values = [[mean.get((row, column), math.nan) for column in columns] for row in reversed(rows)]
        names = [f"{row:g}" for row in reversed(rows)], [f"{column:g}" for column in columns]
        title = f"{group}: {plan.sweep.metric.rpartition('/')[2].replace('_', ' ')} over two hyper-parameters"
        maps.append(heat_chart(title, *names, values, row_key, column_key))
    return maps


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def plot_tuning(plan: Plan, tuning: Sequence[Standing], path: Path) -> None:
    """Every tuned parameter against the metric, a row of axes per group; writes a PNG.

    A point is one run; the mean of a candidate over its seeds is a short bar, and the best candidate is filled.
    """
    groups = {name: space for name, space in plan.spaces.items() if space}
    columns = max(len(space) for space in groups.values())
    figure = new_figure(max(4.5, 3.4 * columns), 2.6 * len(groups))
    grid = figure.add_gridspec(len(groups), columns)
    values = [value for s in tuning for value in s.values.values() if not math.isnan(value)]
    margin = 0.06 * (max(values) - min(values) or 1.0)
    for row, (group, space) in enumerate(groups.items()):
        candidates = [s for s in tuning if s.group == group]
        color = PALETTE[row % len(PALETTE)]
        for column, key in enumerate(space):
            axes = figure.add_subplot(grid[row, column])
            _plot_parameter(axes, key, candidates, color)
            axes.set_ylim(min(values) - margin, max(values) + margin)
            axes.set_title(group if column == 0 else "", fontsize=10, loc="left", color=INK, pad=8)
            axes.set_ylabel(plan.sweep.metric.rpartition("/")[2].replace("_", " ") if column == 0 else "")
            strip_axes(axes, grid="y")
    save_figure(figure, path)


def _plot_parameter(axes: Axes, key: str, candidates: Sequence[Standing], color: str) -> None:
    settings = [s.parameters[key] for s in candidates]
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in settings)
    if numbers:
        at = [float(x) for x in settings]
        if min(at) > 0 and max(at) / min(at) >= 9:
            axes.set_xscale("log")
        if len(set(at)) <= 5:
            axes.set_xticks(sorted(set(at)), [f"{x:g}" for x in sorted(set(at))])
            axes.minorticks_off()
    else:
        names = list(dict.fromkeys(map(str, settings)))
        at = [float(names.index(str(x))) for x in settings]
        axes.set_xticks(range(len(names)), names)
    for index, (x, standing) in enumerate(zip(at, candidates, strict=True)):
        runs = list(standing.values.values())
        axes.plot(
            [x] * len(runs), runs, "o", color=color, markersize=4, markerfacecolor=color if index == 0 else "white"
        )
        axes.plot([x], [standing.mean], "_", color=color, markersize=14, markeredgewidth=2)
    axes.set_xlabel(key)


def plot_evaluation(plan: Plan, results: Results, path: Path) -> None:
    """Each group's frozen choice, mean ± standard error: phase one hollow, phase two filled; writes a PNG."""
    figure = new_figure(7.0, 1.2 + 0.5 * len(results.evaluation))
    axes = figure.add_subplot()
    for row, standing in enumerate(results.evaluation):
        color = PALETTE[list(plan.groups).index(standing.group) % len(PALETTE)]
        promised = next(s for s in results.tuning if _same(s, standing))
        for shown, shift, face in ((promised, -0.14, "white"), (standing, 0.14, color)):
            error = 0.0 if math.isnan(shown.standard_error) else shown.standard_error
            axes.errorbar(shown.mean, row + shift, xerr=error, fmt="o", color=color, markerfacecolor=face, capsize=3)
    axes.set_yticks(range(len(results.evaluation)), [standing.group for standing in results.evaluation])
    axes.invert_yaxis()
    axes.set_title("hollow: phase one (tuned on), filled: phase two", fontsize=10, loc="left", color=INK, pad=8)
    axes.set_xlabel(plan.sweep.metric.rpartition("/")[2].replace("_", " "))
    strip_axes(axes, grid="x")
    axes.tick_params(axis="y", length=0)
    save_figure(figure, path)
