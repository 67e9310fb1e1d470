"""Walking objects: every tensor, generator and plain value that hangs on them, found without being declared."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import torch
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OPAQUE = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, Enum, gymnasium.Space)
_LEAVES = (Tensor, torch.Generator, *PLAIN, *_OPAQUE)


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object that state can hang on."""
    if isinstance(value, torch.optim.Optimizer):
        return {"state": value.state, "param_groups": value.param_groups}
    if hasattr(value, "__dict__"):
        transient = getattr(type(value), "TRANSIENT", ())
        return {name: item for name, item in vars(value).items() if name not in transient}
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def walk(path: str, value: Any, visit: Callable[[str, Any], Any], done: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with every leaf replaced by `visit(path, leaf)`: in place, but for tuples and frozen dataclasses.

    The class of an object is one of its leaves. `done` remembers what every object became: it is walked once.
    """
    if isinstance(value, _LEAVES):
        return visit(path, value)
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, tuple):
        items = [walk(f"{path}.{index}", item, visit, done) for index, item in enumerate(value)]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, (dict, list)):
        done[id(value)] = value, value
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for position, (key, item) in enumerate(pairs):
            name = key if isinstance(key, (str, int)) else position  # an optimiser's keys are parameters
            new = walk(f"{path}.{name}", item, visit, done)
            if new is not item:
                value[key] = new
        return value
    if not (hasattr(value, "__dict__") or dataclasses.is_dataclass(value)):
        return visit(path, value)
    done[id(value)] = value, value
    visit(path, type(value))
    changed = {}
    for name, item in _attributes(value).items():
        new = walk(f"{path}.{name}", item, visit, done)
        if new is not item:
            changed[name] = new
    parameters = getattr(value, "__dataclass_params__", None)
    target = copy.copy(value) if changed and parameters is not None and parameters.frozen else value
    for name, new in changed.items():
        object.__setattr__(target, name, new)
    done[id(value)] = value, target
    return target


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested dicts, sequences and dataclasses with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [map_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: map_tensors(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors that `map_tensors` would change, in order."""
    found: list[Tensor] = []
    map_tensors(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def memory_of(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return tensor.untyped_storage().data_ptr()


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements share memory."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def difference(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected (absolute where that is zero); 0 if equal bit for bit."""
    if torch.equal(got, expected):
        return 0.0
    a, b = got.detach().double(), expected.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, a - b).norm().item() / (torch.where(same & a.isnan(), 0.0, b).norm().item() or 1.0)
    return error if error == error else float("inf")
