"""What a run shows in TensorBoard beside its curves: charts of what belongs together, the matrix, what was chosen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lifelong.agent.difference import flat, from_defaults, text
from lifelong.agent.runtime.events import Chart, Events
from lifelong.agent.runtime.metrics import Evaluations

#: hyper-parameters that are shown of every run, whether they are the defaults or not
ALWAYS = (
    "seed",
    "strategy",
    "gradient",
    "policy.cell",
    "policy.cell.size",
    "policy.encoder",
    "objective",
    "optimizer",
    "optimizer.lr",
    "rollout.copies",
    "rollout.steps",
)
#: what is no hyper-parameter, or has no room in a table
_NOT_SHOWN = re.compile(
    r"stream\.tasks\.|(strategy_options|modules|checkpoint|evaluation|log_every|trackers|runtime|name)\b"
)


def charts(config: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, dict[str, Chart]]:
    """The page of custom scalars: {chapter: {title: chart}}, of what a run with this config logs."""
    engine = config["gradient"]["kind"]
    margins = {f"evaluation/{task}": (f"interval/{task}/low", f"interval/{task}/high") for task in tasks}
    gradient: dict[str, Chart] = {"norm before clipping": ("gradient/norm$",)}
    if engine != "bptt":
        gradient["carry"] = ("gradient/carry_.*",)
    if engine == "online_rtrl":
        gradient["time constants"] = ("gradient/time_constant_.*",)
    strategies = {kind: chart for part in config["strategy"] for kind, chart in _strategy(str(part["kind"]))}
    found: dict[str, dict[str, Chart]] = {
        "every task": {
            "performance ± one standard error; shaded: every second stretch of training": {
                **margins,
                "stretch/odd": ("stretch/zero", "stretch/odd"),
            }
        },
        "all tasks together": {
            "average performance": ("continual/average_performance$",),
            "forgetting and backward transfer": ("continual/(forgetting|backward_transfer)$",),
            "return of training episodes": ("return/.*",),
        },
        "strategy": strategies,
        "learning": {"loss and its parts": ("loss/.*",)},
        "gradient": gradient,
        "plasticity": {
            "dormant units": ("plasticity/dormant_units$",),
            "effective rank": ("plasticity/effective_rank$",),
            "weight norm": ("plasticity/weight_norm$",),
        },
        "speed": {"environment steps per second": (r"speed/.*steps_per_second$",)},
    }
    return {title: chapter for title, chapter in found.items() if chapter}


def _strategy(kind: str) -> Iterator[tuple[str, Chart]]:
    from lifelong.agent import registry
    from lifelong.agent.strategies.base import Strategy
    from lifelong.agent.strategies.projection import Projection
    from lifelong.agent.strategies.replaying import Replaying

    part, name = registry.load("strategy", kind), kind.rpartition(":")[2].lower()
    if part.report not in (Strategy.report, Projection.report, Replaying.report):
        yield name, (rf"strategy/{name}/(?!replay_|rank/|room/).*",)
    if issubclass(part, Projection):
        yield f"{name}: protected directions", (rf"strategy/{name}/rank/.*",)
        yield f"{name}: share of an update that is let through", (rf"strategy/{name}/room/.*",)
    if issubclass(part, Replaying):
        yield f"{name}: sequences stored", (rf"strategy/{name}/replay_size$",)
        yield f"{name}: age of what is replayed", (rf"strategy/{name}/replay_age$",)


def hyperparameters(config: Mapping[str, Any]) -> dict[str, str | bool | float]:
    """The row of a run on the page of hyper-parameters: what is always shown, and what is not the default."""
    chosen = {key for key, _, _ in from_defaults(config)} | {*ALWAYS}
    values = {key: value for key, value in flat(config).items() if key in chosen and not _NOT_SHOWN.match(key)}
    return {key: value if isinstance(value, (bool, int, float)) else text(value) for key, value in values.items()}


def differences(config: Mapping[str, Any]) -> str:
    """The text page of a run: what is not the default, as a table."""
    from lifelong.agent.schema import options

    def known(kind: str, name: str) -> dict[str, Any]:
        return {option: default for option, (default, _) in options(kind, name).items()}

    rows = [f"| `{key}` | {_cell(value)} | {_cell(usual)} |" for key, value, usual in from_defaults(config, known)]
    head = ["What is not the default; `config.yaml` has everything.", "", "| key | value | default |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _cell(value: Any) -> str:
    return text(value).replace("|", "\\|")


#: what a folder of a sweep has (see `agent.sweep.ledger`), two above its runs
SWEEP = "ledger.jsonl"


class Dashboard:
    """Draws what TensorBoard shows beside the scalars of a log.

    Args:
        events: where it is written.
        config: the resolved config, as plain data.
        tasks: names of the tasks.
        starts: steps at which the stretches of training begin, as far as they are known.
    """

    def __init__(
        self, events: Events, config: Mapping[str, Any], tasks: Sequence[str], starts: Callable[[], Sequence[int]]
    ) -> None:
        self.events, self.config, self.tasks, self.starts = events, config, tasks, starts
        self.drawn = 0  # evaluation points in the last picture

    def open(self) -> None:
        """What stands at the beginning of a run."""
        self.events.layout(charts(self.config, self.tasks))
        if not (self.events.folder.absolute().parents[1] / SWEEP).exists():  # which has a row for every run of its own
            self.events.hyperparameters(hyperparameters(self.config))
        self.events.text("config", differences(self.config), 0)

    def evaluation(self, evaluations: Evaluations) -> None:
        """The margins of the last evaluation, the stretch it lies in, and now and then the matrix."""
        before, step = [-1, *evaluations.steps[-2:]][-2], evaluations.steps[-1]
        self.events.scalars(step, interval(evaluations))
        for at, line in borders(self.starts(), before, step):
            self.events.scalars(at, line)
        if len(evaluations.steps) >= max(8, 2 * self.drawn):
            self.matrix(evaluations)

    def matrix(self, evaluations: Evaluations) -> None:
        """Task x time as a picture, if there are points that the last one has not."""
        if len(evaluations.steps) in (0, 1, self.drawn):
            return
        from lifelong.agent.report.matrix import plot_matrix

        self.drawn = len(evaluations.steps)
        png, width, height = plot_matrix(evaluations, [*self.starts()])
        self.events.image("performance of every task over time", png, width, height, evaluations.steps[-1])


def interval(evaluations: Evaluations) -> dict[str, float]:
    """Ends of one standard error around the last evaluation of every task."""
    returns = evaluations.returns[-1]
    middle = evaluations.performance_at(-1)
    found = {}
    for index, (task, (low, high)) in enumerate(zip(evaluations.tasks, evaluations.scores, strict=True)):
        episodes = returns[index][~np.isnan(returns[index])]
        error = float(episodes.std(ddof=1)) / len(episodes) ** 0.5 / abs(high - low) if len(episodes) > 1 else 0.0
        found[f"interval/{task}/low"] = float(middle[index]) - error
        found[f"interval/{task}/high"] = float(middle[index]) + error
    return found


def borders(starts: Sequence[int], before: int, step: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Points of a line that is 0 in every second stretch of training and 1 in the others, from the last point at
    `before` (-1: none) to `step`. Of two points with one step TensorBoard shows one, so it rises within a step."""
    for index, start in enumerate(starts):
        if before < start <= step:
            if start > 0:
                yield start - 1, _border(index + 1)
            yield start, _border(index)
    if step not in starts:
        yield step, _border(sum(start <= step for start in starts) - 1)


def _border(index: int) -> dict[str, float]:
    return {"stretch/odd": float(index % 2), "stretch/zero": 0.0}
