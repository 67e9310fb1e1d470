"""The plan of a sweep: its config, the settings that are tried, and the runs they make. No torch, no Ray.

A sweep tunes one run config. `space` says which of its keys are tried with which values; `groups` are named variants
(strategies, mostly) that are tuned apart from each other and compared at the end. A *candidate* is one choice of
values, a *trial* is one candidate with one seed: a run in a folder of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lifelong.agent import config as configs
from lifelong.agent.config import Config, bounded
from lifelong.agent.errors import ConfigError, choice
from lifelong.agent.runtime import metrics
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.envs.options import brief, problem

#: metric -> (how it is computed, which direction is better)
METRICS: dict[str, tuple[Callable[[Evaluations], float], str]] = {
    "continual/average_performance": (metrics.average_performance, "max"),
    "continual/forgetting": (metrics.forgetting, "min"),
    "continual/backward_transfer": (metrics.backward_transfer, "max"),
}

#: settings that are tried in a group
MOST_CANDIDATES = 1_000
TUNING, EVALUATION = 1, 2  # the phases
PHASE_FOLDERS = {TUNING: "trials", EVALUATION: "evaluation"}


@dataclass
class SearchConfig:
    """Which settings are tried."""

    kind: str = field(default="grid", metadata={"choices": ("grid", "random", "asha", "optuna")})
    #: settings that are drawn in each group (not for grid)
    trials: int = bounded(16, 1, MOST_CANDIDATES)
    seed: int = bounded(0, 0)
    #: asha: no trial is stopped before so many environment steps
    grace_steps: int = bounded(50_000, 1)
    #: asha: one trial in so many goes on at each rung
    reduction_factor: int = bounded(3, 2)


@dataclass
class ProtocolConfig:
    """What the tuning may see, and what the result is measured on."""

    kind: str = field(default="plain", metadata={"choices": ("plain", "two_phase", "k_percent")})
    #: two_phase: what makes the run config the other stream, as dotted key -> value
    evaluate_on: dict[str, Any] = field(default_factory=dict)
    #: seeds of the second phase; none of them may be a seed of the first
    seeds: list[int] = field(default_factory=list)
    #: k_percent: share of the lifetime that the tuning sees
    percent: float = bounded(10.0, 0.0)


@dataclass
class ResourcesConfig:
    """What a trial gets, and where."""

    cpus: float = bounded(1.0, 0.0)
    gpus: float = bounded(0.0, 0.0)
    #: trials at the same time; 0: as many as there is room for
    concurrent: int = bounded(0, 0)
    #: Ray cluster: local, auto or host:port; empty: RAY_ADDRESS, else local
    address: str = ""


@dataclass
class GroupConfig:
    """A variant that is tuned by itself."""

    overrides: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)


@dataclass
class SweepConfig:
    """A whole sweep."""

    name: str = ""
    #: the run config that is tuned: a bundled name or a path
    run: str = ""
    #: dotted key -> value, on top of the run config
    overrides: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    metric: str = field(default="continual/average_performance", metadata={"choices": tuple(METRICS)})
    search: SearchConfig = field(default_factory=SearchConfig)
    #: dotted key -> list of values or {low, high, log}; tried in every group
    space: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, drawn uniformly or (`log`) uniformly in their logarithm."""

    low: float
    high: float
    log: bool
    integer: bool

    def draw(self, rng: random.Random) -> float | int:
        """A value of the range."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return self.readable(value)

    def readable(self, value: float) -> float | int:
        """A drawn value as it is used: four significant digits are enough, and make readable names."""
        return round(value) if self.integer else float(f"{value:.4g}")


Space = dict[str, "list[Any] | Range"]


@dataclass(frozen=True)
class Trial:
    """One run of the sweep.

    Args:
        name: group, parameters and seed; the name of its folder. It has no random part, so the same command finds the
            same runs again.
        phase: TUNING or EVALUATION.
        group: the variant.
        parameters: dotted key -> value.
        seed: seed of the run.
        config: the resolved config.
    """

    name: str
    phase: int
    group: str
    parameters: dict[str, Any]
    seed: int
    config: Config

    def folder(self, sweep: Path) -> Path:
        """The run folder."""
        return sweep / PHASE_FOLDERS[self.phase] / self.name


class Plan:
    """A checked sweep config and everything that follows from it.

    Args:
        sweep: the config of the sweep.
        base: raw mapping of the run config that is tuned.

    Raises:
        ConfigError: one sentence about the first mistake.
    """

    def __init__(self, sweep: SweepConfig, base: dict[str, Any]) -> None:
        self.sweep, self.base = sweep, base
        self.measure, self.mode = METRICS[sweep.metric]
        groups = sweep.groups or {str(base["name"]): {}}
        self.groups: dict[str, GroupConfig] = {
            name: configs.from_mapping(GroupConfig, group, f"groups.{name}") for name, group in groups.items()
        }
        self.spaces = {name: self._space(name) for name in self.groups}
        _check(self)
        for group in self.groups:
            for parameters in self.candidates(group) or [self.sample(group, 0)]:
                self.trial(TUNING, group, parameters, sweep.seeds[0])
            if self.two_phases:
                self.trial(EVALUATION, group, self.sample(group, 0), sweep.protocol.seeds[0])

    @property
    def two_phases(self) -> bool:
        """Whether the choice is evaluated by runs of its own."""
        return self.sweep.protocol.kind != "plain"

    def _space(self, group: str) -> Space:
        space: Space = {}
        for where, raw in (("space", self.sweep.space), (f"groups.{group}.space", self.groups[group].space)):
            space |= {key: _values(value, f"{where}.{key}") for key, value in flatten(raw).items()}
        return space

    def candidates(self, group: str) -> list[dict[str, Any]]:
        """All candidates of a group, as far as they are known before anything runs (none for optuna)."""
        kind, space = self.sweep.search.kind, self.spaces[group]
        if kind == "grid":
            lists = [values for values in space.values() if isinstance(values, list)]
            count = math.prod(map(len, lists))
            if count > MOST_CANDIDATES:
                raise ConfigError(
                    f"the grid of group {group} has {count:,} candidates, more than {MOST_CANDIDATES:,}; list fewer "
                    "values, or set search.kind to random"
                )
            return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]
        if kind == "optuna" and space:
            return []
        drawn = [self.sample(group, index) for index in range(self.sweep.search.trials)]
        return [parameters for index, parameters in enumerate(drawn) if parameters not in drawn[:index]]

    def sample(self, group: str, index: int) -> dict[str, Any]:
        """Random candidate number `index`, which does not depend on how many are drawn."""
        rng = random.Random(f"{self.sweep.search.seed} {group} {index}")
        space = self.spaces[group]
        return {key: v.draw(rng) if isinstance(v, Range) else rng.choice(v) for key, v in space.items()}

    def readable(self, group: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters that were drawn elsewhere, as `sample` would give them."""
        space = self.spaces[group]
        rounded: dict[str, Any] = {}
        for key, value in parameters.items():
            values = space[key]
            rounded[key] = values.readable(value) if isinstance(values, Range) else value
        return rounded

    def trials(self, group: str) -> list[Trial]:
        """The trials of a group: every candidate with every seed."""
        return [
            self.trial(TUNING, group, parameters, seed)
            for parameters in self.candidates(group)
            for seed in self.sweep.seeds
        ]

    def trial(self, phase: int, group: str, parameters: Mapping[str, Any], seed: int) -> Trial:
        """One run, with its resolved config.

        Raises:
            ConfigError: the config of this run is wrong.
        """
        sweep, protocol = self.sweep, self.sweep.protocol
        settings = {**flatten(sweep.overrides), **flatten(self.groups[group].overrides), **parameters}
        if phase == EVALUATION:
            settings |= flatten(protocol.evaluate_on)
        elif protocol.kind == "k_percent":
            settings["stream.share"] = protocol.percent / 100
        settings["seed"] = seed
        name = trial_name(group, parameters if phase == TUNING else {}, seed)
        raw = self.base
        try:
            for key, value in settings.items():
                raw = configs.put(raw, key, value)
            config = configs.check(raw)
        except ConfigError as error:
            raise ConfigError(f"run {name} of the sweep: {error}") from error
        if config.runtime.backend != "inline":
            raise ConfigError(f"runtime.backend is {config.runtime.backend}; a run of a sweep trains inline")
        if config.runtime.device == "auto":  # a GPU that Ray did not reserve belongs to somebody else
            config.runtime.device = "cuda" if sweep.resources.gpus else "cpu"
        return Trial(name, phase, group, dict(parameters), seed, config)

    def to_dict(self) -> dict[str, Any]:
        """Everything that the sweep depends on, as plain data."""
        return {"sweep": asdict(self.sweep), "run": self.base}


def load(name: str, assignments: Sequence[str] = ()) -> Plan:
    """Read, override and check the sweep config `name` (a bundled name or a path).

    Raises:
        ConfigError: one sentence about the first mistake.
    """
    path = configs.find(name, bundle=configs.SWEEP_FOLDER)
    raw = configs.override(configs.read(name, bundle=configs.SWEEP_FOLDER), assignments)
    sweep: SweepConfig = configs.from_mapping(SweepConfig, raw)
    if not sweep.run:
        raise ConfigError("run is missing; name the run config that is tuned, such as `run: quickstart`")
    return Plan(sweep, configs.read(sweep.run, path.parent))


def flatten(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a part (`kind`) and a range (`low`) stay whole. Later keys win."""
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not {"kind", "low", "high"} & set(value):
            flat |= flatten(value, f"{dotted}.")
        else:
            flat.pop(dotted, None)  # so that the order is that of the last mention
            flat[dotted] = value
    return flat


def trial_name(group: str, parameters: Mapping[str, Any], seed: int) -> str:
    """`ewc,lr=0.001,strength=10,seed=0`: readable, stable, and fit for a folder."""
    last = [key.rpartition(".")[2] for key in parameters]
    labels = last if len(set(last)) == len(last) else list(parameters)
    pairs = [f"{label}={value}" for label, value in zip(labels, parameters.values(), strict=True)]
    settings = ",".join(pairs)
    clean = re.sub(r"[^A-Za-z0-9.,=+_-]+", "-", settings)[:120]
    if clean != settings:  # what was lost must still tell two trials apart
        clean += f",{digest(dict(parameters))[:8]}"
    return ",".join(part for part in (group, clean, f"seed={seed}") if part)


def digest(content: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def data_of(config: Config) -> set[str]:
    """What a stream is made of: the environment of every task with all its parameters, as text."""
    from lifelong.envs.tasks import Task  # torch

    configs.find_own_modules(config)
    found = set()
    for spec in config.stream.tasks:
        task = Task.from_spec(spec.name, spec.env, 1)
        defaults = {name: p.default for name, p in _environment_params(task.kind).items()}
        params = {key: float(value) for key, value in {**defaults, **task.params}.items()}
        found.add(json.dumps({"kind": task.kind, **dict(task.options), **params}, sort_keys=True))
    return found


def _environment_params(kind: str) -> Mapping[str, Any]:
    from lifelong.envs.tasks import environment_class  # torch

    return environment_class(kind).all_params()


# ---- checking --------------------------------------------------------------------------------------------------------


def _values(raw: Any, where: str) -> list[Any] | Range:
    """The values of one key of a space: a list, or {low, high, log}."""
    if isinstance(raw, list) and raw:
        return raw
    if not isinstance(raw, Mapping) or not {"low", "high"} <= set(raw):
        raise ConfigError(
            f"{where} is {brief(raw)}; it must be a list of values, or {{low: ..., high: ..., log: true}}"
        )
    for key in raw:
        choice(f"key in {where}", key, ("low", "high", "log"))
    low, high, log = raw["low"], raw["high"], raw.get("log", False)
    for key, value in (("low", low), ("high", high)):
        wrong = problem(float, value)
        if wrong is not None:
            raise ConfigError(f"{where}.{key} is {brief(value)}; it must be {wrong}")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log is {brief(log)}; it must be true or false")
    if low >= high or (log and low <= 0):
        raise ConfigError(f"{where} goes from {low} to {high}; low must lie below high, and above 0 with log")
    return Range(low, high, log, isinstance(low, int) and isinstance(high, int))


def _check(plan: Plan) -> None:
    """Refuse what no single key can show."""
    sweep = plan.sweep
    configs.check_label("name", sweep.name)
    for group in plan.groups:
        if not re.fullmatch(r"[\w.+-]+", group) or len(group.encode()) > 80:  # runs are called after it
            raise ConfigError(
                f"groups.{group}: a name of a group is made of letters, digits and . _ + -, of 80 bytes at most"
            )
    for where, seeds in (("seeds", sweep.seeds), ("protocol.seeds", sweep.protocol.seeds)):
        if len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0:
            raise ConfigError(f"{where} is {seeds}; seeds are different integers of at least 0")
    if not sweep.seeds:
        raise ConfigError("seeds is empty; every candidate needs at least one seed, such as `seeds: [0, 1]`")
    if not any(plan.spaces.values()) and len(plan.groups) == 1:
        raise ConfigError(
            "space is empty; name at least one key to tune, such as `space: {optimizer.lr: [1e-3, 3e-3]}`"
        )
    for group, space in plan.spaces.items():
        for key, values in space.items():
            if key in ("seed", "name") or key.startswith("runtime."):
                raise ConfigError(f"space.{key} cannot be tuned; seeds are listed under `seeds`")
            if sweep.search.kind == "grid" and isinstance(values, Range):
                raise ConfigError(
                    f"{key} of group {group} is a range, which search.kind grid cannot enumerate; give a list of "
                    "values, or set search.kind to random"
                )
    if sweep.search.kind == "asha" and sweep.metric != "continual/average_performance":
        raise ConfigError(
            f"search.kind asha compares runs before their end, where {sweep.metric} means nothing; use metric "
            "continual/average_performance, or search.kind random"
        )
    _check_protocol(plan)


def _check_protocol(plan: Plan) -> None:
    sweep, protocol = plan.sweep, plan.sweep.protocol
    if protocol.kind != "two_phase" and protocol.evaluate_on:
        raise ConfigError(f"protocol.evaluate_on belongs to protocol.kind two_phase, not {protocol.kind}")
    if protocol.kind == "plain":
        if protocol.seeds:
            raise ConfigError("protocol.seeds belongs to protocol.kind two_phase or k_percent, not plain")
        return
    if not protocol.seeds:
        raise ConfigError(f"protocol.seeds is empty; {protocol.kind} evaluates the choice with seeds of its own")
    common = sorted(set(sweep.seeds) & set(protocol.seeds))
    if common:
        raise ConfigError(f"protocol.seeds has {common}, which the tuning uses too; give the evaluation other seeds")
    if protocol.kind == "k_percent":
        if not 0 < protocol.percent < 100:
            raise ConfigError(f"protocol.percent is {protocol.percent:g}; it must lie between 0 and 100")
        return
    if not protocol.evaluate_on:
        raise ConfigError(
            "protocol.evaluate_on is empty; say what makes the other stream, such as `{stream.tasks: [...]}`"
        )
    for group, space in plan.spaces.items():
        for key in flatten(protocol.evaluate_on):
            clash = [tuned for tuned in space if f"{tuned}.".startswith(f"{key}.") or f"{key}.".startswith(f"{tuned}.")]
            if clash:
                raise ConfigError(f"protocol.evaluate_on.{key} would overwrite {clash[0]}, which group {group} tunes")
