"""Reading runs: run folders as data, and the rows of a comparison that they make."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lifelong.agent.errors import CheckpointError, ConfigError
from lifelong.agent.files import parse_json
from lifelong.agent.runtime.metrics import Evaluations, forward_transfer_auc
from lifelong.agent.runtime.summary import load_summary

#: how deep below a given folder runs are looked for (runs/ -> name -> seed is two)
SEARCH_DEPTH = 3

#: settings in which runs of one row of the comparison may differ, besides the strategy's kind (which names the row)
NOT_COMPARED = re.compile(r"(seed|name|log_every)$|(checkpoint|trackers|strategy_options)\.|strategy\.\d+\.kind$")


class ReportError(ConfigError):
    """A run that cannot be reported on, as one sentence (a ValueError; exit 2)."""


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class RunData:
    """One run folder.

    Args:
        path: the folder.
        summary: its `summary.json`.
        evaluations: its `evaluation.npz`.
    """

    path: Path
    summary: dict[str, Any]
    evaluations: Evaluations

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, read when first asked for.

        Raises:
            ReportError: the file is missing or damaged.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
        return [parse_json(line, path, {"step": int}, ReportError) for line in lines]

    @property
    def config_name(self) -> str:
        """Name of the config."""
        return str(self.summary["config"]["name"])

    @property
    def strategy(self) -> str:
        """Kinds of the strategies in their order: `gpm`, `ewc+clear`."""
        return "+".join(str(part["kind"]) for part in self.summary["config"]["strategy"])


def load_runs(paths: Sequence[Path]) -> list[RunData]:
    """Read runs.

    Args:
        paths: run folders, or folders that hold them at most three levels below.

    Raises:
        ReportError: a path that is or holds no finished run, or a run that is damaged.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ReportError(f"no run at {path}: there is no such folder")
        found = list(_find(path, SEARCH_DEPTH))
        if not found:
            raise ReportError(f"no finished run in {path}: no summary.json there or up to {SEARCH_DEPTH} levels below")
        folders.update((folder.resolve(), None) for folder in found)
    return [_load(folder) for folder in folders]


def _find(folder: Path, depth: int) -> Iterable[Path]:
    """Run folders in `folder`, itself included; nothing inside a run is searched."""
    if (folder / "summary.json").is_file():
        yield folder
    elif depth > 0:
        for child in sorted(child for child in folder.iterdir() if child.is_dir()):
            yield from _find(child, depth - 1)


def _load(folder: Path) -> RunData:
    """Read and check one run folder."""
    path = folder / "evaluation.npz"
    if not path.is_file():
        raise ReportError(f"run {folder} has no evaluation.npz")
    try:
        summary, evaluations = load_summary(folder), Evaluations.load(path)
    except CheckpointError as error:
        raise ReportError(str(error)) from error
    if not evaluations.steps:
        raise ReportError(f"run {folder} has no evaluation point yet")
    return RunData(folder, summary, evaluations)


# ---- grouping --------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """Runs that differ in their seed only: one row of the comparison.

    Args:
        config: name of the config.
        label: the strategies, and the settings in which this row differs from others with the same strategies.
        runs: the runs.
    """

    config: str
    label: str
    runs: list[RunData]

    def values(self, key: str) -> list[float]:
        """A number of the summary, over runs; NaN where a run has none."""
        return [number(run.summary[key]) for run in self.runs]

    def task_values(self, task: str, key: str) -> list[float]:
        """A number of one task, over the runs that have this task."""
        return [number(row[key]) for run in self.runs for row in run.summary["tasks"] if row["name"] == task]

    @property
    def seeds(self) -> int:
        """Number of different seeds."""
        return len({run.summary["seed"] for run in self.runs})


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    """Group runs by config name and strategies, best median average performance first within a config name.

    Runs whose other settings differ (another gradient, another strength) are kept apart, and the label names those
    settings: a median over them would be a median over different experiments. What most of the rows have is not named.
    """
    named: dict[tuple[str, str], list[RunData]] = {}
    for run in runs:
        named.setdefault((run.config_name, run.strategy), []).append(run)
    groups: dict[tuple[str, str], Group] = {}
    for (config, strategy), members in named.items():
        settings = [_settings(run.summary["config"]) for run in members]
        keys = sorted({key for setting in settings for key in setting})
        rows = {tuple(setting.get(key) for key in keys) for setting in settings}
        usual = {key: _usual([row[index] for row in rows]) for index, key in enumerate(keys)}
        for run, setting in zip(members, settings, strict=True):
            named_keys = [key for key in keys if key in setting and setting[key] != usual[key]]
            extra = [f"{key.removesuffix('.kind')}={setting[key]}" for key in named_keys]
            label = f"{strategy} ({', '.join(extra)})" if extra else strategy
            groups.setdefault((config, label), Group(config, label, [])).runs.append(run)
    return sorted(groups.values(), key=lambda g: (g.config, -median_of(g.values("average_performance")), g.label))


def _usual(values: Sequence[str | None]) -> str | None:
    """The value that more than half of the rows have, which need not be named; None if a row is without any."""
    (value, count), *_ = Counter(values).most_common(1)
    return value if None not in values and 2 * count > len(values) else None


def by_config(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Runs per config name, names in order."""
    names = sorted({run.config_name for run in runs})
    return {name: [run for run in runs if run.config_name == name] for name in names}


def _settings(value: Any, prefix: str = "") -> dict[str, str]:
    """The settings of a config that make two runs different experiments, as dotted key -> text."""
    if isinstance(value, (Mapping, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        flat: dict[str, str] = {}
        for key, child in items:
            flat.update(_settings(child, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {} if NOT_COMPARED.match(prefix) else {prefix: str(value)}


def forward_transfer(run: RunData, references: Sequence[RunData]) -> float:
    """`continual/forward_transfer_auc` of a run; NaN if some task has no reference.

    The reference of a task is a run that was trained on this task alone, on the same scale and for at most as long; one
    with the same seed if there is one.
    """
    chosen = []
    for task, score, end in zip(
        run.evaluations.tasks, run.evaluations.scores, run.evaluations.training_end, strict=True
    ):
        alone = [
            reference
            for reference in references
            if (reference.evaluations.tasks, reference.evaluations.scores) == ([task], [score])
            and reference.evaluations.training_end[0] <= end
        ]
        if not alone or len(run.evaluations.tasks) == 1:
            return math.nan
        chosen.append(min(alone, key=lambda reference: reference.summary["seed"] != run.summary["seed"]).evaluations)
    values = forward_transfer_auc(run.evaluations, chosen)
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


def task_names(runs: Sequence[RunData]) -> list[str]:
    """Tasks of all runs, in the order in which they are first met."""
    return list(dict.fromkeys(task["name"] for run in runs for task in run.summary["tasks"]))


def number(value: Any) -> float:
    """A number of a summary; JSON has no NaN, so what is undefined may be null there."""
    return math.nan if value is None else float(value)


def median_of(values: Iterable[float]) -> float:
    """Median of the defined values; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return median(defined) if defined else math.nan
