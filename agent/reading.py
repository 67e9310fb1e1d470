"""Reading configs: files, includes and overrides as one raw mapping. Nothing is imported that takes time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lifelong.agent.errors import ConfigError, unknown_name
from lifelong.envs.options import brief

CONFIG_FOLDER = Path(__file__).parent.parent / "configs"
SWEEP_FOLDER = CONFIG_FOLDER / "sweeps"

#: bytes of a config file
LARGEST_FILE = 1_000_000
#: configs that one config may include, and how deep
MOST_INCLUDES = 50


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that also reads 2e-3 as a number (YAML 1.1 wants 2.0e-3).

    Repeated keys, keys that are no words and aliases, of which a short file can make a huge one, are errors.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not read; use include", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                said = f"the key {brief(key)} is no word"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {brief(key)} is there twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        """`<<` is a key like any other."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML safely.

    Raises:
        ConfigError: the text is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested too deeply") from error
    except (ValueError, OverflowError) as error:  # dates and numbers that cannot be
        raise ConfigError(f"{where}: not valid YAML: {error}") from error


def bundled(bundle: Path = CONFIG_FOLDER) -> dict[str, Path]:
    """The configs that ship with the package in `bundle`: name -> path."""
    return {path.stem: path for path in sorted(bundle.glob("*.yaml"))}


def find(name: str, folder: Path | None = None, bundle: Path = CONFIG_FOLDER) -> Path:
    """The file that `name` stands for: a path (relative to `folder`), or a bundled config of `bundle`.

    Raises:
        ConfigError: there is no such file.
    """
    try:
        path = (folder or Path.cwd()) / name
        if path.is_file():
            return path
    except (OSError, ValueError) as error:  # a name that is too long, a working folder that is gone
        raise ConfigError(f"cannot look for config {brief(name)}: {error}") from error
    if name in bundled(bundle):
        return bundled(bundle)[name]
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise ConfigError(f"no config file {brief(name)}")
    raise ConfigError(unknown_name("config", name, bundled(bundle)))


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top; mappings are merged, everything else is replaced.

    A mapping that names another `kind` replaces the old part instead of inheriting its options.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            kind = old.get("kind")
            if value.get("kind", kind) == kind:
                merged[key] = merge(dict(old), value)
    return merged


def read(
    name: str, folder: Path | None = None, seen: tuple[Path, ...] = (), bundle: Path = CONFIG_FOLDER
) -> dict[str, Any]:
    """The raw mapping of a config file with its includes merged."""
    path = find(name, folder, bundle).resolve()
    if path in seen:
        raise ConfigError(f"{path.name}: include goes in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path.name} has {path.stat().st_size:,} bytes; a config has at most {LARGEST_FILE:,}")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not in UTF-8: {error.reason} at byte {error.start}") from error
    raw = parse_yaml(text, path.name)
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name}: a config is a mapping of keys, not a {type(raw).__name__}")
    includes = raw.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise ConfigError(
            f"{path.name}: include is {brief(includes)}; it must be the name of a config or a list of them"
        )
    if len(includes) > MOST_INCLUDES or len(seen) > MOST_INCLUDES:
        raise ConfigError(f"{path.name}: more than {MOST_INCLUDES} includes")
    merged: dict[str, Any] = {}
    for include in includes:
        merged = merge(merged, read(str(include), path.parent, (*seen, path), bundle))
    merged = merge(merged, raw)
    if not seen:
        merged.setdefault("name", path.stem)
        if bundle not in path.parents:
            _find_modules_beside(merged, path.parent)
    return merged


def _find_modules_beside(raw: dict[str, Any], folder: Path) -> None:
    """Let modules beside the config be found, now and when its run is resumed from elsewhere."""
    known = raw.get("modules", [])
    if isinstance(known, list) and str(folder) not in known and any(folder.glob("*.py")):
        raw["modules"] = [*known, str(folder)]


def override(raw: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`raw` with dotted `a.b=value` assignments applied; values are YAML.

    Raises:
        ConfigError: an assignment without `=`, or a path through something that is no mapping or list.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {assignment!r} must have the form key=value")
        raw = put(raw, key, parse_yaml(text, f"override {key}"))
    return raw


def put(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`raw` with `value` at the dotted `key`.

    Raises:
        ConfigError: the key leads through something that is no mapping or list.
    """
    nested: Any = value
    for step in reversed(key.split(".")):
        nested = {step: nested}
    result: dict[str, Any] = _assign(raw, nested, key)
    return result


def _assign(raw: Any, nested: Any, key: str) -> Any:
    if not isinstance(nested, dict):
        return nested
    if isinstance(raw, list):
        items = list(raw)
        for step, value in nested.items():
            if not step.isdigit() or int(step) >= len(items):
                raise ConfigError(f"override {key}: {step!r} is no index of a list of {len(items)}")
            items[int(step)] = _assign(items[int(step)], value, key)
        return items
    if isinstance(raw, str):
        raw = {"kind": raw}  # `cell: elstm` and the override cell.size=64
    if isinstance(raw, dict) and "kind" in raw and all(step.isdigit() for step in nested):
        return _assign([raw], nested, key)  # `strategy: ewc` and the override strategy.0.strength=10
    if raw is not None and not isinstance(raw, dict):
        raise ConfigError(f"override {key}: {raw!r} has no keys")
    result = dict(raw or {})
    for step, value in nested.items():
        result[step] = _assign(result.get(step), value, key)
    if "kind" in nested and raw and raw.get("kind") != nested["kind"]:
        return nested
    return result
