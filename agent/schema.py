"""The schema of configs, with the options of every part: as JSON for editors, and as defaults for `lifelong show`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lifelong.agent import registry
from lifelong.agent.config import Config, find_own_modules
from lifelong.agent.schedules import SHAPES
from lifelong.envs.options import LARGEST, Range
from lifelong.envs.tasks import CONTEXT, environment_class

_SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string"}
#: what the runtime gives parts, and no config does
_CONTEXT = {*CONTEXT, "params", "capturable", "differentiable"}


def options(kind: str, name: str) -> dict[str, tuple[Any, Any]]:
    """option -> (default, annotation) of a part; an environment's task parameters are among them."""
    part = environment_class(name) if kind == "env" else registry.load(kind, name)
    found = {
        option: (parameter.default, hint)
        for option, (parameter, hint) in registry.annotated(kind, part).items()
        if option not in _CONTEXT and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
    }
    if kind == "env":
        for option, param in part.all_params().items():
            limits = Range(max(param.low, -LARGEST), min(param.high, LARGEST))
            default = int(param.default) if param.integer else float(param.default)
            found[option] = default, Annotated[int if param.integer else float, limits]
    return found


def with_defaults(config: Config) -> Config:
    """The config with every option of every part, given or not."""
    find_own_modules(config)
    full = copy.deepcopy(config)
    policy, stream = full.policy, full.stream
    parts = [("encoder", policy.encoder), ("cell", policy.cell), ("schedule", stream.schedule)]
    parts += [("gradient", full.gradient), ("objective", full.objective), ("optimizer", full.optimizer)]
    parts += [("detector", full.detector)]
    parts += [("strategy", spec) for spec in full.strategy] + [("env", task.env) for task in stream.tasks]
    for kind, spec in parts:
        for option, (default, _) in options(kind, spec["kind"]).items():
            plain = list(default) if isinstance(default, tuple) else default
            if isinstance(plain, (bool, int, float, str, list, type(None))):
                spec.setdefault(option, plain)
    return full


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a config file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lifelong config",
        **_object(Config, {"include": {"type": ["string", "array"], "items": {"type": "string"}}}),
        "$defs": {kind: _part(kind) for kind in registry.REGISTRY},
    }


def _object(cls: Any, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    hints = get_type_hints(cls)
    properties = {f.name: _field(f, hints[f.name]) for f in dataclasses.fields(cls)}
    return {"type": "object", "properties": {**properties, **(more or {})}, "additionalProperties": False}


def _field(spec: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    meta = spec.metadata
    if "part" in meta:
        return {"$ref": f"#/$defs/{meta['part']}"}
    if "parts" in meta:
        one = {"$ref": f"#/$defs/{meta['parts']}"}
        return {"anyOf": [one, {"type": "array", "items": one}]}
    if dataclasses.is_dataclass(hint):
        return _object(hint)
    if get_origin(hint) is list and dataclasses.is_dataclass(get_args(hint)[0]):
        several = {"type": "array", "items": _object(get_args(hint)[0])}
        name = {"type": "string", "pattern": ":"}
        made = [name, {"type": "object", "properties": {"kind": name}, "required": ["kind"]}]
        return {"anyOf": [several, *made]} if "made" in meta else several
    found = _type(Annotated[hint, meta["range"]] if "range" in meta else hint)
    if "choices" in meta:
        found["enum"] = list(meta["choices"])
    if "words" in meta:
        found = {"anyOf": [{"enum": list(meta["words"])}, found]}
    if spec.default is not dataclasses.MISSING:
        found["default"] = spec.default
    return found


def _part(kind: str) -> dict[str, Any]:
    names = list(registry.REGISTRY[kind])
    any_name = {"anyOf": [{"enum": names}, {"type": "string", "pattern": ":"}]}
    cases = []
    for name in names:
        try:
            known = options(kind, name)
        except ValueError:  # a package that it needs is missing
            continue
        properties = {option: _with_default(hint, default) for option, (default, hint) in known.items()}
        for option in registry.scheduled(kind, registry.load(kind, name)) if kind in ("optimizer", "objective") else ():
            number = {key: x for key, x in properties[option].items() if key != "default"}
            properties[option] = {**properties[option], "anyOf": [number, _ramp(number)]}
            for key in number:
                properties[option].pop(key)
        if kind == "env" and environment_class(name).exact_state:  # adapters have wrappers of their own, or none
            properties["wrappers"] = {"type": "array"}
        allowed = {"properties": {"kind": {"const": name}, **properties}, "additionalProperties": False}
        cases.append({"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": allowed})
    return {"anyOf": [any_name, {"type": "object", "properties": {"kind": any_name}, "allOf": cases}]}


def _ramp(number: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule of a number (see `agent.schedules`)."""
    steps = {"over": {"type": "integer", "minimum": 1}, "after": {"type": "integer", "minimum": 0}}
    properties = {"from": number, "to": number, **steps, "shape": {"enum": list(SHAPES)}}
    return {
        "type": "object",
        "properties": properties,
        "required": ["from", "to", "over"],
        "additionalProperties": False,
    }


def _with_default(hint: Any, default: Any) -> dict[str, Any]:
    plain = list(default) if isinstance(default, tuple) else default
    shown = {"default": plain} if isinstance(plain, (bool, int, float, str, list)) else {}
    return {**_type(hint), **shown}


def _type(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = _type(arguments[0])
        for limits in (extra for extra in arguments[1:] if isinstance(extra, Range)):
            found["exclusiveMinimum" if limits.above else "minimum"] = limits.low
            found["maximum"] = limits.high
        return found
    if origin in (Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if a is type(None) else _type(a) for a in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object"}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": _type(next(iter(arguments), Any))}
    return {"type": _SIMPLE[hint]} if hint in _SIMPLE else {}
