"""What may be changed of a run that was trained: one rule for every key of a config, and the record of the changes.

`changes.jsonl` has one object a line: {"step", "time", "kind", "key", "old", "new"}, and "note" where something starts
afresh. Kinds are `override` (a value), `swap` (a part), `add` (a task) and `inexact` (computed with something else).
Lines are only ever appended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from lifelong.agent import registry
from lifelong.agent.config import Config
from lifelong.agent.errors import CheckpointError, ConfigError, DiskError
from lifelong.agent.files import parse_json, sync
from lifelong.agent.runtime.build import build_stream
from lifelong.agent.runtime.summary import CHANGE
from lifelong.envs.tasks import environment_class

FILE = "changes.jsonl"


@dataclass(frozen=True)
class Change:
    """One key of the config with another value; a key of the options of a part is `optimizer.lr`, of its kind
    `optimizer`."""

    kind: str
    key: str
    old: Any
    new: Any
    #: what starts afresh
    note: str = ""

    @property
    def pattern(self) -> str:
        """The key of `RULES`."""
        return _pattern(self.key)

    def __str__(self) -> str:
        """`optimizer.lr=0.1 (was 0.01)`."""
        was = "" if self.kind == "add" else f" (was {_brief(self.old)})"
        return f"{self.key}={_brief(self.new)}{was}"


# ---- the rules -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What becomes of a key that is changed.

    `refused` says why it cannot be; with a `check` it is refused only where that says so (see `_CHECKS`). `fresh` says
    what starts afresh.
    """

    refused: str = ""
    check: str = ""
    fresh: str = ""


APPLIES = Rule()
_PAST = Rule("it would change steps that were trained already; tasks to come have stream.tasks.N.steps", check="past")
_TRAINED = Rule("the parameters were trained with it; start a new run")

#: every key of the schema. `*` stands for an index or for the option of a part; the key of a part is its kind.
RULES: dict[str, Rule] = {
    "name": APPLIES,
    "seed": Rule("another seed is another run; all randomness of this one is in its checkpoint"),
    "stream.tasks": Rule("a task that was planned cannot be taken away; shorten the stream with stream.tasks.N.steps"),
    "stream.tasks.*": Rule("it would change steps that were trained already; use --add", check="past"),
    "stream.tasks.*.name": Rule("its log and evaluations have the old name"),
    "stream.tasks.*.env": Rule("another environment is another task; give it to the run with --add"),
    "stream.tasks.*.env.*": Rule(
        "the environment was built with it, so it is another task; give it to the run with --add", check="option"
    ),
    "stream.tasks.*.steps": _PAST,
    "stream.tasks.*.score": APPLIES,
    "stream.tasks.*.reward_scale": Rule("replayed rewards were multiplied by 0", check="scale"),
    "stream.schedule": _PAST,
    "stream.schedule.*": _PAST,
    "stream.steps_per_task": _PAST,
    "stream.cycles": _PAST,
    "stream.added": _PAST,
    "stream.share": _PAST,
    "stream.boundaries": APPLIES,
    "stream.task_id": _TRAINED,
    "stream.spaces": APPLIES,
    "policy.encoder": _TRAINED,
    "policy.encoder.*": _TRAINED,
    "policy.encoder.depth": APPLIES,  # of a block that is repeated; its parameters are the same
    "policy.cell": _TRAINED,
    "policy.cell.*": _TRAINED,
    "policy.previous_action": _TRAINED,
    "policy.previous_reward": _TRAINED,
    "policy.normalize_observations": _TRAINED,
    "policy.reset_memory_on": APPLIES,
    "policy.squash": _TRAINED,
    "policy.weight_drop": APPLIES,
    "policy.heads": _TRAINED,
    "policy.critics": _TRAINED,
    "gradient": Rule(fresh="the carry"),
    "gradient.*": Rule(fresh="the carry"),
    "objective": APPLIES,
    "objective.*": APPLIES,
    "optimizer": Rule(fresh="the optimiser's state"),
    "optimizer.*": APPLIES,
    "detector": Rule(fresh="what the detector knows"),
    "detector.*": Rule(fresh="what the detector knows"),
    "max_grad_norm": APPLIES,
    "on_nonfinite": APPLIES,
    "strategy": Rule("one of the two has an actor of its own; start a new run", check="actor"),
    "strategy.*.*": APPLIES,
    "strategy_options.*.*": Rule("that strategy has options of its own; set strategy.N.OPTION", check="named"),
    "rollout.copies": Rule(fresh="episodes, memory and carry"),
    "rollout.steps": APPLIES,  # a replay of sequences refuses it
    "rollout.short_first.steps": APPLIES,
    "rollout.initial_state": APPLIES,
    "rollout.initial_noise": APPLIES,
    "rollout.short_first.over": APPLIES,
    "rollout.short_first.shape": APPLIES,
    "rollout.random_initial_age": Rule("it is about the first episodes, which are over"),
    "evaluation.every": APPLIES,
    "evaluation.episodes": APPLIES,
    "evaluation.deterministic": APPLIES,
    "evaluation.max_steps": APPLIES,
    "checkpoint.every": APPLIES,
    "checkpoint.keep": APPLIES,
    "log_every": APPLIES,
    "trackers": APPLIES,
    "modules": APPLIES,
    "runtime.backend": APPLIES,
    "runtime.device": APPLIES,
    "runtime.threads": APPLIES,
    "runtime.workers": Rule("the checkpoint has a shard for each worker"),
    "runtime.env_runners": Rule("the checkpoint has the episodes of each runner"),
    "runtime.cpus_per_runner": APPLIES,
    "runtime.address": APPLIES,
    "runtime.capture": APPLIES,
    "runtime.max_failures": APPLIES,
    "runtime.env_restarts": APPLIES,
}


def check(changes: Sequence[Change], old: Config, new: Config, step: int) -> None:
    """Refuse changes that a run that was trained for `step` steps cannot take.

    Raises:
        ConfigError: the first one, and why.
    """
    rules = [RULES.get(change.pattern, Rule("nothing says what would become of it")) for change in changes]
    # those that need no look at parts come first: parts of the checkpoint that the config does not have stay unimported
    for change, rule in sorted(zip(changes, rules, strict=True), key=lambda pair: bool(pair[1].check)):
        if rule.refused and (not rule.check or _CHECKS[rule.check](change, old, new, step)):
            what = f"{change.key} cannot become {_brief(change.new)} in a run that was trained"
            raise ConfigError(f"{what} (it is {_brief(change.old)}): {rule.refused}")


def _changes_the_past(change: Change, old: Config, new: Config, step: int) -> bool:
    if registry.is_foreign(old.stream.schedule) and old.stream.schedule["kind"] != new.stream.schedule["kind"]:
        return True  # code that only the checkpoint names is not run
    before, after = build_stream(old), build_stream(new)
    step = min(step, before.total_steps)  # the last chunk goes beyond the end
    return before.history(step) != after.history(step)


def _is_option(change: Change, old: Config, new: Config, step: int) -> bool:
    _, _, index, _, name = change.key.split(".")
    return name not in environment_class(new.stream.tasks[int(index)].env["kind"]).all_params()


def _was_zero(change: Change, old: Config, new: Config, step: int) -> bool:
    return bool(change.old == 0)


def _is_in_use(change: Change, old: Config, new: Config, step: int) -> bool:
    kind = change.key.split(".")[1]
    return kind in {s["kind"] for s in old.strategy} & {s["kind"] for s in new.strategy}


def _is_another_actor(change: Change, old: Config, new: Config, step: int) -> bool:
    found = [{s["kind"] for s in config.strategy if not registry.is_foreign(s)} for config in (old, new)]
    before, after = (any(registry.load("strategy", kind).composes for kind in kinds) for kinds in found)
    return before != after


_CHECKS = {
    "past": _changes_the_past,
    "option": _is_option,
    "scale": _was_zero,
    "named": _is_in_use,
    "actor": _is_another_actor,
}


# ---- what was changed ------------------------------------------------------------------------------------------------


def between(old: Config, new: Config) -> list[Change]:
    """The keys in which two checked configs differ, with a note of what starts afresh."""
    found = list(_fields(old, new, ""))
    if any(change.kind == "add" for change in found):
        found = [change for change in found if change.key != "stream.added"]  # it says no more
    return [dataclasses.replace(c, note=RULES.get(c.pattern, APPLIES).fresh) for c in found]


def patterns(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every key that `between` can find in configs of the dataclass `schema`, as in `RULES`."""
    for field in dataclasses.fields(schema):
        key, default = prefix + field.name, field.default_factory
        value = default() if default is not dataclasses.MISSING else field.default
        if "part" in field.metadata:
            yield from (key, f"{key}.*")
        elif "parts" in field.metadata:
            yield from (key, f"{key}.*.*")
        elif isinstance(value, dict):
            yield f"{key}.*.*"
        elif dataclasses.is_dataclass(value):
            yield from patterns(type(value), key + ".")
        else:
            yield key
            item = _item_of(schema, field.name)
            if item is not None:
                yield f"{key}.*"
                yield from patterns(item, f"{key}.*.")


def _item_of(schema: type, name: str) -> type | None:
    """The dataclass that a list of the schema holds, if it holds any."""
    (item, *_) = (*get_args(get_type_hints(schema)[name]), None)
    return item if dataclasses.is_dataclass(item) and isinstance(item, type) else None


def _fields(old: Any, new: Any, prefix: str) -> Iterator[Change]:
    for field in dataclasses.fields(new):
        key, a, b = prefix + field.name, getattr(old, field.name), getattr(new, field.name)
        if "part" in field.metadata:
            yield from _parts(field.metadata["part"], key, a, b)
        elif "parts" in field.metadata:
            kinds = [part["kind"] for part in a], [part["kind"] for part in b]
            if kinds[0] != kinds[1]:
                yield Change("swap", key, *kinds)
            before = {part["kind"]: part for part in a}
            for index, part in enumerate(b):
                if part["kind"] in before:
                    yield from _parts(field.metadata["parts"], f"{key}.{index}", before[part["kind"]], part)
        elif isinstance(b, dict):
            for name in dict.fromkeys([*a, *b]):
                yield from _options(f"{key}.{name}", a.get(name, {}), b.get(name, {}), {})
        elif dataclasses.is_dataclass(b):
            yield from _fields(a, b, key + ".")
        elif isinstance(b, list) and b and dataclasses.is_dataclass(b[0]):
            if len(b) < len(a):
                yield Change("override", key, len(a), len(b))
            for index, (was, now) in enumerate(zip(a, b, strict=False)):
                yield from _fields(was, now, f"{key}.{index}.")
            for index, item in list(enumerate(b))[len(a) :]:
                given = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
                default = vars(type(item)())
                yield Change("add", f"{key}.{index}", None, {k: v for k, v in given.items() if v != default[k]})
        elif a != b:
            yield Change("override", key, a, b)


def _parts(kind: str, key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    if old["kind"] != new["kind"]:
        yield Change("swap", key, dict(old), dict(new))
        return
    yield from _options(key, old, new, _defaults(kind, new["kind"]))


def _options(key: str, old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys([*old, *new]):
        a, b = (spec.get(name, defaults.get(name)) for spec in (old, new))
        a, b = (list(value) if isinstance(value, tuple) else value for value in (a, b))
        if a != b:
            yield Change("override", f"{key}.{name}", a, b)


def _defaults(kind: str, name: str) -> dict[str, Any]:
    """The values of the options of a part that are not given."""
    defaults = {option: p.default for option, p in registry.options_of(registry.load(kind, name)).items()}
    if kind == "env":
        defaults |= {param: p.default for param, p in environment_class(name).all_params().items()}
    return defaults


def _pattern(key: str) -> str:
    """The key of `RULES` for a dotted key."""
    generic = re.sub(r"\.\d+(?=\.|$)", ".*", key)
    if generic in RULES:
        return generic
    head, _, _ = generic.rpartition(".")
    if f"{head}.*" in RULES:
        return f"{head}.*"
    return re.sub(r"^(strategy_options)\..*", r"\1.*.*", generic)


def _brief(value: Any) -> str:
    """A value in a sentence."""
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return text if len(text) <= 60 else text[:57] + "..."


# ---- the record ------------------------------------------------------------------------------------------------------


def record(folder: Path, step: int, changes: Sequence[Change]) -> None:
    """Append what was applied at `step` to `changes.jsonl`, once each, and see it on the disk.

    Raises:
        DiskError: it cannot be written.
    """
    known = [(line["step"], line["key"], line["new"]) for line in read(folder)]
    lines = [{"step": step, "time": time.time(), **dataclasses.asdict(change)} for change in changes]
    lines = [{k: v for k, v in line.items() if k != "note" or v} for line in lines]
    lines = json.loads(json.dumps(lines, default=str))
    lines = [line for line in lines if (step, line["key"], line["new"]) != _last(known, step, line["key"])]
    if not lines:
        return
    try:
        with open(folder / FILE, "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # of a line that a kill cut off
            file.writelines((json.dumps(line) + "\n").encode() for line in lines)
            file.flush()
            os.fsync(file.fileno())
        sync(folder)
    except OSError as error:
        raise DiskError(f"cannot write {folder / FILE}: {error.strerror or error}") from error


def _last(known: Sequence[tuple[int, str, Any]], step: int, key: str) -> tuple[int, str, Any] | None:
    """The last entry of a key, if it was made at `step`."""
    of_key = [entry for entry in known if entry[1] == key]
    return of_key[-1] if of_key and of_key[-1][0] == step else None


def read(folder: Path) -> list[dict[str, Any]]:
    """What was changed so far, oldest first. A last line that a kill cut off says nothing.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        *whole, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return [parse_json(line, path, CHANGE) for line in whole]


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """What was changed, in Markdown, for TensorBoard."""
    rows = [
        f"| {line['step']:,} | {line['kind']} | {line['key']} | {_brief(line['old'])} | {_brief(line['new'])} "
        f"| {line.get('note', '')} |"
        for line in lines
    ]
    return "\n".join(["| step | change | key | before | after | afresh |", "|---|---|---|---|---|---|", *rows])
