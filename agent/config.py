"""Configs: dataclasses are the schema, YAML is the surface. No torch is imported here, so mistakes answer at once.

A config file is a YAML mapping of the fields below. `include: [other, ...]` merges other files first (a bundled name
or a path relative to the file); `a.b=value` overrides from the command line come last. Unknown keys are errors.

A *part* is anything registered in `agent.registry`: either its name (`cell: elstm`) or a mapping with its options
(`cell: {kind: elstm, size: 64}`). `kind` may also be `module:Attr`, for a part of your own.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import yaml

from lifelong.agent.errors import ConfigError, choice, unknown_name
from lifelong.agent.reading import CONFIG_FOLDER, SWEEP_FOLDER, bundled, find, merge, override, parse_yaml, put, read
from lifelong.agent.registry import REGISTRY, check_name, is_foreign
from lifelong.agent.schedules import SHAPES
from lifelong.envs.options import LARGEST, Range, brief, problem

__all__ = [
    "CONFIG_FOLDER",
    "SWEEP_FOLDER",
    "bundled",
    "find",
    "merge",
    "override",
    "parse_yaml",
    "put",
    "read",
]

Part = dict[str, Any]
#: see `agent.runtime.trackers`
TRACKERS = ("csv", "wandb", "mlflow")


def part(kind: str, default: Any) -> Any:
    """A dataclass field that holds a part of `kind` (`{"kind": name, ...}`)."""
    return field(default_factory=lambda: {"kind": default}, metadata={"part": kind, "default": default})


def bounded(default: Any, low: float, high: float = LARGEST, **metadata: Any) -> Any:
    """A dataclass field that holds a number from `low` to `high`."""
    return field(default=default, metadata={"range": Range(low, high), **metadata})


@dataclass
class TaskConfig:
    """One task of the stream."""

    name: str = ""
    env: Part = part("env", "")
    #: training steps of this task (all copies together); 0 takes stream.steps_per_task
    steps: int = bounded(0, 0)
    #: (return of a useless policy, return of a solved task); empty takes the environment's own
    score: list[float] = field(default_factory=list)
    #: the learner sees rewards times this; returns in logs and evaluations are unscaled
    reward_scale: float = bounded(1.0, 0.0, 1e9)


@dataclass
class StreamConfig:
    """The stream of tasks: what is trained when, and what the agent is told about it."""

    #: in a config also `module:function` that makes them (see `agent.own_tasks`)
    tasks: list[TaskConfig] = field(default_factory=list, metadata={"made": True})
    schedule: Part = part("schedule", "sequential")
    steps_per_task: int = bounded(200_000, 1)
    cycles: int = bounded(1, 1, 10_000)
    #: how many of the last tasks each `lifelong resume --add` gave to a trained run; they come after all others, once
    added: list[int] = field(default_factory=list)
    #: train on this first share of the stream only: the beginning of a lifetime, for tuning
    share: float = bounded(1.0, 0.0, 1.0)
    #: detected: `detector` finds them
    boundaries: str = field(default="given", metadata={"choices": ("given", "hidden", "detected")})
    task_id: str = field(default="hidden", metadata={"choices": ("hidden", "observed")})
    #: tasks whose spaces differ are refused ("same"), or padded to the largest and masked ("pad")
    spaces: str = field(default="same", metadata={"choices": ("same", "pad")})


@dataclass
class PolicyConfig:
    """The recurrent policy: encoder -> cell -> heads."""

    encoder: Part = part("encoder", "mlp")
    cell: Part = part("cell", "elstm")
    previous_action: bool = False
    previous_reward: bool = False
    #: observations are read less their running mean, over their running deviation
    normalize_observations: bool = False
    #: when the memory (and the carry) is reset; "step": it has none, a control for tasks that need one
    reset_memory_on: str = field(default="episode", metadata={"choices": ("episode", "task", "never", "step")})
    #: continuous actions are clipped to their bounds ("none"), or squashed to them by a tanh
    squash: str = field(default="none", metadata={"choices": ("none", "tanh")})
    #: share of the weights that read the cell's state which is absent while a chunk is learned from (gradient bptt)
    weight_drop: float = bounded(0.0, 0.0, 0.999)
    #: one actor head per task instead of one for all; needs an observed task id
    heads: str = field(default="shared", metadata={"choices": ("shared", "per_task")})
    #: one critic per task instead of one for all; needs an observed task id
    critics: str = field(default="shared", metadata={"choices": ("shared", "per_task")})


@dataclass
class ShortFirstConfig:
    """Shorter chunks at first, which grow to `rollout.steps`."""

    #: steps of the first ones; 0: all have `rollout.steps`
    steps: int = bounded(0, 0, 10**6)
    #: environment steps until they have `rollout.steps`
    over: int = bounded(1_000_000, 1)
    shape: str = field(default="linear", metadata={"choices": SHAPES})


@dataclass
class RolloutConfig:
    """How experience is collected."""

    #: environment copies stepped side by side
    copies: int = bounded(64, 1, 10**7)
    #: steps of a chunk, T: the parameters are constant during a chunk
    steps: int = bounded(32, 1, 10**6)
    short_first: ShortFirstConfig = field(default_factory=ShortFirstConfig)
    #: what the memory is at the beginning of an episode while it is learned from; acting and evaluation begin at zero
    initial_state: str = field(default="zero", metadata={"choices": ("zero", "noise", "passed")})
    #: standard deviation of the noise
    initial_noise: float = bounded(1.0, 0.0, 1e3)
    #: let first episodes start at a random age, so that copies do not time out together
    random_initial_age: bool = False


@dataclass
class EvaluationConfig:
    """Evaluation of every task; it never disturbs training."""

    #: environment steps between evaluations; every task's end is evaluated too
    every: int = bounded(100_000, 1)
    episodes: int = bounded(32, 1, 100_000)
    #: take the most likely action (the mean) instead of a sampled one
    deterministic: bool = True
    #: give up on an episode after this many steps
    max_steps: int = bounded(1_000, 1, 10**9)


@dataclass
class CheckpointConfig:
    """When to save; a signal always saves."""

    #: environment steps between checkpoints
    every: int = bounded(200_000, 1)
    keep: int = bounded(2, 1, 10**6)


@dataclass
class RuntimeConfig:
    """Where and how the run executes."""

    #: inline: one process, no Ray; ray: `workers` data-parallel learners and `env_runners` environment processes
    backend: str = field(default="inline", metadata={"choices": ("inline", "ray")})
    device: str = field(default="auto", metadata={"choices": ("auto", "cpu", "cuda")})
    #: torch threads of each worker; auto, kept as 0: as many as the machine has free when the run begins
    threads: int = bounded(1, 0, 4096, words={"auto": 0})
    #: data-parallel workers; each trains rollout.copies / workers copies (backend ray)
    workers: int = bounded(1, 1, 10**5)
    #: processes that step the environments on CPUs while the learner learns; 0: the workers step them (backend ray)
    env_runners: int = bounded(0, 0, 10**5)
    #: CPUs that Ray reserves for an environment process
    cpus_per_runner: float = bounded(1.0, 0.0, 4096)
    #: Ray cluster: local (start one here), auto (the one running here) or host:port; empty: RAY_ADDRESS, else local
    address: str = ""
    #: auto: on a GPU a chunk is captured as one CUDA graph where that can be done; off: it runs op by op
    capture: str = field(default="auto", metadata={"choices": ("auto", "off")})
    #: how often workers may be started again after a death, from the last checkpoint
    max_failures: int = bounded(3, 0, 10**6)
    #: how often, in all, copies of a Gymnasium environment that raised are made anew (sync and async, one process)
    env_restarts: int = bounded(0, 0, 10**6)


@dataclass
class Config:
    """A whole run."""

    name: str = ""
    seed: int = bounded(0, 0, 2**31 - 1)
    stream: StreamConfig = field(default_factory=StreamConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    gradient: Part = part("gradient", "bptt")
    objective: Part = part("objective", "actor_critic")
    optimizer: Part = part("optimizer", "adam")
    #: clip the global gradient norm; 0 switches it off
    max_grad_norm: float = bounded(1.0, 0.0, 1e12)
    #: what happens when a reward, an observation, a loss or a gradient is NaN or infinite: the run stops, or the chunk
    #: is dropped
    on_nonfinite: str = field(default="stop", metadata={"choices": ("stop", "skip")})
    #: continual-learning strategies, applied in this order
    strategy: list[Part] = field(default_factory=lambda: [{"kind": "finetune"}], metadata={"parts": "strategy"})
    #: finds boundaries where stream.boundaries is detected
    detector: Part = part("detector", "cusum")
    #: options that a strategy takes when it is chosen by its name alone: {ewc: {strength: 100}, ...}
    strategy_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    #: folders in which modules of the user's own are looked for; that of the config file is among them if it has any
    modules: list[str] = field(default_factory=list)
    #: environment steps between lines in the log
    log_every: int = bounded(20_000, 1)
    #: where the log goes besides the run folder and TensorBoard: csv, wandb, mlflow
    trackers: list[str] = field(default_factory=list)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


# ---- checking --------------------------------------------------------------------------------------------------------


def check_part(kind: str, value: Any, where: str) -> Part:
    """A part as `{"kind": name, ...}`; checks that the name is known (its options are checked when it is built)."""
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ConfigError(f"{where} is {brief(value)}; it must be a name of {kind} or a mapping with a `kind`")
    if not isinstance(value["kind"], str):
        raise ConfigError(f"{where}.kind is {brief(value['kind'])}; valid: {', '.join(REGISTRY[kind])}")
    check_name(kind, value["kind"])
    return dict(value)


def _check_field(spec: dataclasses.Field[Any], hint: Any, value: Any, where: str) -> Any:
    meta = spec.metadata
    if "part" in meta:
        if isinstance(value, Mapping) and "kind" not in value and meta["default"]:
            value = {"kind": meta["default"], **value}
        return check_part(meta["part"], value, where)
    if "parts" in meta:
        values = value if isinstance(value, list) else [value]
        return [check_part(meta["parts"], item, where) for item in values]
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {brief(value)}; it must be a list")
        (item_hint,) = get_args(hint)
        if dataclasses.is_dataclass(item_hint):
            return [from_mapping(item_hint, item, f"{where}.{i}") for i, item in enumerate(value)]
        return [_scalar(item_hint, item, f"{where}.{i}") for i, item in enumerate(value)]
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {brief(value)}; it must be a mapping")
        return value
    if isinstance(value, str) and value in meta.get("words", {}):
        return meta["words"][value]
    value = _scalar(Annotated[hint, meta["range"]] if "range" in meta else hint, value, where)
    if "choices" in meta:
        choice(where, value, meta["choices"])
    return value


def _scalar(hint: Any, value: Any, where: str) -> Any:
    """A number, word or truth value of the type `hint`; 1e6 is an integer, and 1 a float."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if plain is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    wrong = problem(hint, value)
    if wrong is not None:
        raise ConfigError(f"{where} is {brief(value)}; it must be {wrong}")
    return float(value) if plain is float else value


def from_mapping(cls: Any, raw: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from a raw mapping and check every key and type.

    Raises:
        ConfigError: unknown key, wrong type, or a value out of range; the sentence names the dotted key.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where or 'the config'} is {brief(raw)}; it must be a mapping")
    specs = {f.name: f for f in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    for key in raw:
        if key not in specs:
            raise ConfigError(unknown_name(f"key in {where or 'the config'}", str(key), specs))
    values = {}
    for key, value in raw.items():
        values[key] = _check_field(specs[key], hints[key], value, f"{where}.{key}" if where else key)
    return cls(**values)


def check(raw: Mapping[str, Any]) -> Config:
    """The checked config of a raw mapping.

    Raises:
        ConfigError: one sentence about the first mistake.
    """
    config: Config = from_mapping(Config, raw)
    check_label("name", config.name)
    if not config.stream.tasks:
        raise ConfigError("stream.tasks is empty; name at least one task, such as `- env: TMaze`")
    names: dict[str, str] = {}
    for index, task in enumerate(config.stream.tasks):
        check_part("env", task.env, f"stream.tasks.{index}.env")
        task.name = task.name or str(task.env["kind"])
        check_label(f"stream.tasks.{index}.name", task.name)
        tag = re.sub(r"[^-/\w.]", "_", task.name)  # as TensorBoard writes it
        if names.get(tag) == task.name:
            raise ConfigError(f"stream.tasks.{index}.name {task.name!r} is used twice; give every task its own name")
        if tag in names:
            raise ConfigError(f"task names {names[tag]!r} and {task.name!r} are one in TensorBoard; change one of them")
        names[tag] = task.name
        if task.score and (len(task.score) != 2 or task.score[0] == task.score[1]):
            raise ConfigError(
                f"stream.tasks.{index}.score is {brief(task.score)}; it must be two different returns, [low, high]"
            )
    added = config.stream.added
    if any(count < 1 for count in added) or sum(added) >= len(names):
        raise ConfigError(
            f"stream.added is {added}; it must count the last of {len(names)} tasks, and leave at least one"
        )
    for name, options in config.strategy_options.items():
        check_name("strategy", name)
        if not isinstance(options, Mapping):
            raise ConfigError(f"strategy_options.{name} is {brief(options)}; it must be a mapping of options")
    for tracker in config.trackers:
        if tracker not in TRACKERS:
            raise ConfigError(unknown_name("tracker", tracker, TRACKERS))
    _check_runners(config)
    _check_detector(config)
    _check_short_first(config)
    kinds = [strategy["kind"] for strategy in config.strategy]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ConfigError(f"strategy {kind} is listed twice; give each strategy once")
    config.strategy = [{**config.strategy_options.get(s["kind"], {}), **s} for s in config.strategy]
    return config


def check_label(where: str, name: str) -> None:
    """Refuse a name that could leave its folder, or break a terminal, a plot or a table."""
    unfit = not name.isprintable() or any(mark in name for mark in "/\\$") or name.strip(" .") != name
    if unfit or len(name) > 100 or len(name.encode()) > 200:  # file systems take 255 bytes, and more is put behind it
        raise ConfigError(
            f"{where} is {brief(name)}; it must be at most 100 printable characters (200 bytes) without / \\ or $ that "
            "neither begin nor end with a dot or a space"
        )


def foreign_parts(config: Config) -> list[str]:
    """The `module:Attr` that a config names: code of the user's own, which is imported when the run is built."""
    policy, stream = config.policy, config.stream
    parts = [policy.encoder, policy.cell, config.gradient, config.objective, config.optimizer, stream.schedule]
    parts += [config.detector, *config.strategy, *(task.env for task in stream.tasks)]
    wrappers = [each for task in stream.tasks for each in _list(task.env.get("wrappers"))]
    parts += [dict(each) if isinstance(each, Mapping) else {"kind": each} for each in wrappers]
    kinds = [part["kind"] for part in parts if isinstance(part.get("kind"), str) and is_foreign(part)]
    ids = [task.env.get("id") for task in stream.tasks]  # gymnasium imports the module of `module:Env-v0`
    return list(dict.fromkeys([*kinds, *(name for name in ids if isinstance(name, str) and ":" in name)]))


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def find_own_modules(config: Config) -> None:
    """Let code of the user's own be found: in the current folder and in `modules`, if the config names any.

    Where it names none, nothing from there is imported, in place of an optional package that is missing, say.
    """
    if foreign_parts(config):
        sys.path += [folder for folder in (os.getcwd(), *config.modules) if folder not in sys.path]


def _check_detector(config: Config) -> None:
    detected, kind = config.stream.boundaries == "detected", config.detector["kind"]
    if kind != "cusum" and not detected:  # chosen, and it would not be asked
        raise ConfigError(
            f"detector {kind} is asked only where stream.boundaries is detected, and that is "
            f"{config.stream.boundaries}; set it to detected"
        )
    if detected and config.runtime.env_runners:
        raise ConfigError(
            "stream.boundaries is detected, which needs chunks of all copies, and environment runners give some at a "
            "time; set runtime.env_runners to 0"
        )


def _check_short_first(config: Config) -> None:
    first, steps, runners = config.rollout.short_first.steps, config.rollout.steps, config.runtime.env_runners
    if first > steps:
        raise ConfigError(f"rollout.short_first.steps is {first}, above rollout.steps, {steps}; lower it")
    if first and runners:
        raise ConfigError(
            f"rollout.short_first.steps is {first}, and runtime.env_runners, {runners}, give chunks of one length; set "
            "one of them to 0"
        )


def _check_runners(config: Config) -> None:
    runtime, copies = config.runtime, config.rollout.copies
    runners, cpus = runtime.env_runners, runtime.cpus_per_runner
    if cpus > 1 and not cpus.is_integer():
        raise ConfigError(f"runtime.cpus_per_runner is {cpus:g}; above 1 it must be an integer")
    if not runners:
        return
    if runtime.backend != "ray":
        raise ConfigError(f"runtime.env_runners is {runners}, which needs runtime.backend=ray, not {runtime.backend}")
    if runtime.workers > 1:
        raise ConfigError(
            f"runtime.env_runners is {runners} and runtime.workers {runtime.workers}; runners feed one learner, so set "
            "one of them to its default"
        )
    if copies % runners:
        raise ConfigError(
            f"rollout.copies is {copies}, which {runners} runtime.env_runners cannot share; use "
            f"{max(1, round(copies / runners)) * runners}"
        )


def load(name: str, assignments: Sequence[str] = ()) -> Config:
    """Read, override and check a config.

    Args:
        name: of a bundled config, or a path.
        assignments: overrides, `a.b=value` with values in YAML.

    Returns:
        The checked config.

    Raises:
        ConfigError: one sentence about the first mistake.

    Example:
        config = lifelong.load_config("quickstart", ["strategy=gpm", "stream.steps_per_task=100_000"])
    """
    return check(override(read(name), assignments))


def choose(name: str, assignments: Sequence[str] = ()) -> Config:
    """`load` of what a user chose: where it takes its tasks from a function, that is called. Not for run folders.

    Raises:
        ConfigError: one sentence about the first mistake.
    """
    from lifelong.agent.own_tasks import with_own_tasks

    return check(with_own_tasks(override(read(name), assignments)))


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain data, as it is written to `config.yaml`."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load` reads again."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=110)
