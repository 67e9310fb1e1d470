"""In what a config differs from the defaults, and configs from each other. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lifelong.agent import config as configs

#: what says nothing of a run that its folder or its parts do not say
_LEFT_OUT = ("name", "seed", "strategy_options", "modules")
#: the parts of a config that have options: where they lie, and of which kind they are
_PARTS = {
    "policy.encoder": "encoder",
    "policy.cell": "cell",
    "stream.schedule": "schedule",
    "gradient": "gradient",
    "objective": "objective",
    "optimizer": "optimizer",
    "detector": "detector",
}

#: (kind of a part, its name) -> the defaults of its options
Options = Callable[[str, str], Mapping[str, Any]]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a config as dotted key -> value. A part is its kind, and its options lie below it; of a list of
    tasks or parts each goes by its name."""
    return dict(_leaves(value, prefix))


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    def at(key: str) -> str:
        return f"{prefix}.{key}" if prefix else key

    if isinstance(value, Mapping):
        if isinstance(value.get("kind"), str):
            yield prefix, value["kind"]
        for key, inner in value.items():
            if key != "kind":
                yield from _leaves(inner, at(str(key)))
    elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
        names = [str(item.get("name") or item.get("kind")) for item in value]
        yield prefix, "+".join(names)
        for name, item in zip(names, value, strict=True):
            rest = {key: inner for key, inner in item.items() if key not in ("name", "kind")}
            yield from _leaves(rest, at(name))
    else:
        yield prefix, value


def from_defaults(config: Mapping[str, Any], options: Options | None = None) -> list[tuple[str, Any, Any]]:
    """What was chosen: (key, value, default), in the order of the config; None where nothing is the default.

    Args:
        config: a resolved config as plain data.
        options: the defaults of a part's options, where they are known; without, every option that is given counts.
    """
    usual = flat(configs.to_dict(configs.Config()))
    task = flat(dataclasses.asdict(configs.TaskConfig()))
    if options is not None:
        for key, kind in _PARTS.items():
            usual |= _below(key, options(kind, _part(config, key)["kind"]))
        for part in config["strategy"]:
            usual |= _below(f"strategy.{part['kind']}", options("strategy", part["kind"]))
    for found in config["stream"]["tasks"]:
        usual |= _below(f"stream.tasks.{found['name']}", task)
        if options is not None:
            usual |= _below(f"stream.tasks.{found['name']}.env", options("env", found["env"]["kind"]))
    chosen = flat({key: value for key, value in config.items() if key not in _LEFT_OUT})
    return [(key, value, usual.get(key)) for key, value in chosen.items() if not _same(value, usual.get(key))]


def between(config: Mapping[str, Any], usual: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value, what the other config has) where two configs differ; None where one of them has no such key."""
    one, other = (flat({key: value for key, value in c.items() if key not in _LEFT_OUT}) for c in (config, usual))
    keys = [*one, *(key for key in other if key not in one)]
    return [(key, one.get(key), other.get(key)) for key in keys if not _same(one.get(key), other.get(key))]


def words(differences: Sequence[tuple[str, Any, Any]]) -> str:
    """Differences as a sentence: `strategy ewc instead of clear, strategy.ewc.strength 1`.

    That a part which is not there has no options goes without saying.
    """
    parts, keys = [], [key for key, _, _ in differences]
    for key, value, other in differences:
        if value is None and any(key.startswith(f"{above}.") for above in keys):
            continue
        if value is None:
            parts.append(f"no {key}")
        else:
            parts.append(f"{key} {text(value)}" + ("" if other is None else f" instead of {text(other)}"))
    return ", ".join(parts)


def text(value: Any) -> str:
    """A value as it stands in a table."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(text, value)) + "]"
    return str(value) or "–"


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part: Any = config
    for name in key.split("."):
        part = part[name]
    return part  # type: ignore[no-any-return]


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(one) == list(other)
    return one == other and isinstance(one, bool) == isinstance(other, bool)
