"""Reading configs: files, includes and overrides as one raw mapping. Nothing is imported that takes time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lifelong.agent.errors import ConfigError, unknown_name
from lifelong.envs.options import brief

CONFIG_FOLDER = Path(__file__).parent.parent / "configs"
SWEEP_FOLDER = CONFIG_FOLDER / "sweeps"

#: bytes of a config with all that it includes; PyYAML reads about 150,000 of them in a second
LARGEST_CONFIG = 300_000
#: files that a config is made of, each counted as often as it is included
MOST_FILES = 50
#: steps of a dotted key
LONGEST_KEY = 20


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that also reads 2e-3 as a number (YAML 1.1 wants 2.0e-3).

    Repeated keys, keys that are no words and aliases, of which a short file can make a huge one, are errors. So are
    values that their tag does not allow, and integers longer than any that is meant.
    """

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= 10**100:
                raise OverflowError
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:  # PyYAML looks before no leap
            tag = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{brief(node.value)} cannot be read as {tag}", problem_mark=node.start_mark
            ) from error
        return value

    def construct_yaml_float(self, node: Any) -> Any:
        value = super().construct_yaml_float(node)
        counts = "." not in node.value and math.isfinite(value) and value.is_integer()
        return int(value) if counts else value  # 1e4 is as good an integer as 10000

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


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
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


def read(name: str, folder: Path | None = None, bundle: Path = CONFIG_FOLDER) -> dict[str, Any]:
    """The raw mapping of a config file with its includes merged.

    Raises:
        ConfigError: a file that is not there, cannot be read or is no config, or includes without an end.
    """
    path = find(name, folder, bundle).resolve()
    merged = _with_includes(path, (), [], bundle)
    merged.setdefault("name", path.stem)
    if bundle.resolve() not in path.parents:
        find_modules_beside(merged, path.parent)
    return merged


def _with_includes(path: Path, above: tuple[Path, ...], sizes: list[int], bundle: Path) -> dict[str, Any]:
    """A file on top of what it includes; `above` includes it, `sizes` has the bytes of every file read so far."""
    if path in above:
        raise ConfigError(f"{path.name}: include goes in a circle: {' -> '.join(p.name for p in (*above, path))}")
    raw = read_file(path, sizes)
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
    if isinstance(raw.get("modules"), list):
        raw["modules"] = [str(path.parent / m) if isinstance(m, str) else m for m in raw["modules"]]
    merged: dict[str, Any] = {}
    for include in includes:
        file = find(include, path.parent, bundle).resolve()
        merged = merge(merged, _with_includes(file, (*above, path), sizes, bundle))
    return merge(merged, raw)


def read_file(path: Path, sizes: list[int] | None = None) -> Any:
    """What a YAML file holds; `sizes` has the bytes of the files of the same config that were read before.

    Raises:
        ConfigError: it cannot be read, is too large, or is not valid YAML in UTF-8.
    """
    sizes = [] if sizes is None else sizes
    try:
        sizes.append(path.stat().st_size)
        if len(sizes) > MOST_FILES:
            raise ConfigError(f"{path.name}: a config is made of at most {MOST_FILES} files; include fewer")
        if sum(sizes) > LARGEST_CONFIG:
            raise ConfigError(
                f"{path.name}: a config with all that it includes has at most {LARGEST_CONFIG:,} bytes, "
                f"not {sum(sizes):,}"
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not in UTF-8: {error.reason} at byte {error.start}") from error
    return parse_yaml(text, path.name)


def find_modules_beside(raw: dict[str, Any], folder: Path) -> None:
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
    steps = key.split(".")
    if len(steps) > LONGEST_KEY:
        raise ConfigError(f"override {brief(key)}: no key has more than {LONGEST_KEY} steps")
    nested: Any = value
    for step in reversed(steps):
        nested = {step: nested}
    result: dict[str, Any] = _assign(raw, nested, key)
    return result


def _is_index(step: str) -> bool:
    return step.isdecimal() and len(step) < 7


def _assign(raw: Any, nested: Any, key: str) -> Any:
    if not isinstance(nested, dict):
        return nested
    if isinstance(raw, list) and "kind" in nested:
        return nested  # one part takes the place of all: `strategy={kind: ewc, strength: 5}`
    if isinstance(raw, list):
        items = list(raw)
        for step, value in nested.items():
            if not _is_index(step) or int(step) >= len(items):
                raise ConfigError(f"override {key}: {step!r} is no index of a list of {len(items)}")
            items[int(step)] = _assign(items[int(step)], value, key)
        return items
    if isinstance(raw, str):
        raw = {"kind": raw}  # `cell: elstm` and the override cell.size=64
    if isinstance(raw, dict) and "kind" in raw and all(map(_is_index, nested)):
        return _assign([raw], nested, key)  # `strategy: ewc` and the override strategy.0.strength=10
    if raw is not None and not isinstance(raw, dict):
        raise ConfigError(f"override {key}: {raw!r} has no keys")
    result = dict(raw or {})
    for step, value in nested.items():
        result[step] = _assign(result.get(step), value, key)
    if "kind" in nested and raw and raw.get("kind") != nested["kind"]:
        return nested
    return result
