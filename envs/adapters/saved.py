"""The state of somebody else's environment as plain data, and back into another one that was made alike.

An environment may say itself what its state is, by `get_state()` and `set_state(state)`. Else its attributes are walked
through: numbers, texts, arrays, containers, random generators, and objects of classes written in Python; the
emulator of ALE has a state of its own. Functions, classes, spaces and what else does not change are left as
the other one has them. Nothing that is saved is code, so a checkpoint can be read without trusting it: classes of
objects that have to be made anew are looked for among those that are imported already, and no constructor is called.
"""

from __future__ import annotations

import enum
import inspect
import logging
import random
import sys
import types
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

#: depth of attributes and items that is walked through
DEEPEST = 60
_PLAIN = (type(None), bool, int, float, str)
_SAME: tuple[type, ...] = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, np.dtype, np.ufunc, torch.dtype),
    *(enum.Enum, logging.Logger, Path, property, complex, range, torch.device),
)
_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}


class CannotSave(Exception):
    """What of an environment is no data, as a short phrase."""


def state_of(env: gymnasium.Env[Any, Any]) -> Any:
    """The state of an environment in its wrappers, as data that `torch.load(weights_only=True)` reads.

    Raises:
        CannotSave: there is something in it of which the state is not known.
    """
    return _Reader().read(env, type(env).__name__, 0)


def set_state(env: gymnasium.Env[Any, Any], state: Any) -> None:
    """Put an environment that was made alike, and has been reset, into a saved state.

    Raises:
        CannotSave: it does not fit.
    """
    try:
        _Writer().write(env, state)
    except CannotSave:
        raise
    except Exception as error:  # whatever setters of somebody else's classes raise
        raise CannotSave(f"{type(error).__name__}: {error}") from error


def state_of_value(value: Any) -> Any:
    """A value, such as an observation, as data (see `state_of`)."""
    return _Reader().read(value, "it", 0)


def value_of(state: Any) -> Any:
    """What `state_of_value` was given."""
    return _Writer().write(None, state)


class _Reader:
    """Makes data of objects; one that is met again is the number of the first meeting."""

    def __init__(self) -> None:
        self.met: dict[int, int] = {}
        self.held: list[Any] = []  # so that no other object gets an address

    def read(self, value: Any, where: str, depth: int) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, (*_SAME, EnvSpec)):
            return ["same"]
        if id(value) in self.met:
            return ["met", self.met[id(value)]]
        if depth > DEEPEST:
            raise CannotSave(f"{where} is nested too deep")
        self.met[id(value)] = len(self.met)
        self.held.append(value)
        return self._read(value, where, depth + 1)

    def _read(self, value: Any, where: str, depth: int) -> Any:
        if isinstance(value, np.ndarray) and value.dtype != object:
            return ["array", _array(value), str(value.dtype), list(value.shape)]
        if isinstance(value, np.generic):
            return ["number", _array(np.asarray(value)), str(value.dtype)]
        if isinstance(value, torch.Tensor):
            return ["tensor", value.detach().cpu().clone()]
        if isinstance(value, (bytes, bytearray)):
            return [type(value).__name__, torch.from_numpy(np.frombuffer(bytes(value), np.uint8).copy())]
        if isinstance(value, (np.random.Generator, np.random.RandomState, random.Random)):
            return ["random", self.read(_random_state(value), where, depth)]
        if isinstance(value, gymnasium.Space):
            return ["space", None if value._np_random is None else _random_state(value._np_random)]
        if type(value) in (dict, *_SEQUENCES.values()):
            if isinstance(value, dict):
                pairs = [[self.read(k, where, depth), self.read(v, f"{where}[{k!r}]", depth)] for k, v in value.items()]
                return ["dict", pairs]
            longest = value.maxlen if isinstance(value, deque) else None
            return [type(value).__name__, [self.read(each, f"{where}[...]", depth) for each in value], longest]
        own = _own(value)
        if own is not None:
            generator = getattr(value, "_np_random", None)
            return ["own", self.read(own, where, depth), self.read(generator, f"{where}.np_random", depth)]
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name.endswith(".ALEInterface"):
            return ["ale", torch.from_numpy(np.frombuffer(_ale_state(value), np.uint8).copy())]
        if not hasattr(value, "__dict__") or not _in_python(kind):
            raise CannotSave(f"{where} is a {name}, of which the state is not known")
        parts = [[k, self.read(v, f"{where}.{k}", depth)] for k, v in sorted(vars(value).items())]
        return ["object", name, parts]


class _Writer:
    """Puts data back into objects, in the order in which they were read."""

    def __init__(self) -> None:
        self.met: list[Any] = []
        #: what stands for something that was saved already, and must not stand for something else, too
        self.used: dict[int, Any] = {}

    def write(self, now: Any, saved: Any) -> Any:
        """What stands for `saved`: `now`, changed, where that is of the same kind; else something new."""
        if not isinstance(saved, list):
            return saved
        kind, *rest = saved
        if kind == "same":
            return now
        if kind == "met":
            return self.met[rest[0]]
        place = len(self.met)
        if now is not None and id(now) in self.used:
            now = None
        elif now is not None:
            self.used[id(now)] = now
        self.met.append(now)
        self.met[place] = made = self._write(kind, now, rest, place)
        return made

    def _write(self, kind: str, now: Any, rest: list[Any], place: int) -> Any:
        if kind in ("array", "number"):
            array = np.frombuffer(rest[0].numpy().tobytes(), np.dtype(rest[1]))
            if kind == "number":
                return array[0]
            array = array.reshape(rest[2])
            if (
                type(now) is np.ndarray
                and now.dtype == array.dtype
                and now.shape == array.shape
                and now.flags.writeable
            ):
                np.copyto(now, array)  # others may share its memory
                return now
            return array.copy()
        if kind == "tensor":
            return rest[0].clone()
        if kind in ("bytes", "bytearray"):
            return {"bytes": bytes, "bytearray": bytearray}[kind](rest[0].numpy().tobytes())
        if kind == "random":
            return _with_random_state(now, self.write(None, rest[0]))
        if kind == "space":
            if rest[0] is not None:
                now.np_random.bit_generator.state = rest[0]
            return now
        if kind == "dict":
            old = now if type(now) is dict else {}
            made: dict[Any, Any] = old if type(now) is dict else {}
            self.met[place] = made
            new = {}
            for key, value in rest[0]:
                key = self.write(None, key)
                new[key] = self.write(old.get(key), value)
            made.clear()
            made.update(new)
            return made
        if kind in _SEQUENCES:
            return self._sequence(kind, now, rest, place)
        if kind == "own":
            now.set_state(self.write(now.get_state(), rest[0]))
            if rest[1] is not None:
                now._np_random = self.write(now._np_random, rest[1])
            return now
        if kind == "ale":
            return _set_ale(now, rest[0].numpy().tobytes())
        if kind == "object":
            return self._object(now, rest[0], rest[1], place)
        raise CannotSave(f"{kind!r} is no kind of state")

    def _sequence(self, kind: str, now: Any, rest: list[Any], place: int) -> Any:
        olds: list[Any] = list(now) if type(now) is _SEQUENCES[kind] and kind not in ("set", "frozenset") else []
        if kind in ("list", "deque"):  # in place, as others may hold it
            made: Any = now if type(now) is _SEQUENCES[kind] else [] if kind == "list" else deque(maxlen=rest[1])
            self.met[place] = made
        items = [self.write(olds[i] if i < len(olds) else None, each) for i, each in enumerate(rest[0])]
        if kind not in ("list", "deque"):
            return _SEQUENCES[kind](items)
        made.clear()
        made.extend(items)
        return made

    def _object(self, now: Any, name: str, parts: list[Any], place: int) -> Any:
        if f"{type(now).__module__}.{type(now).__qualname__}" != name:
            now = _blank(name)
        self.met[place] = now
        old, new = vars(now), {}
        for key, value in parts:
            new[key] = self.write(old.get(key), value)
        old.clear()
        old.update(new)
        return now


def alike(one: Any, other: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return bool(one == other) or one != one


def _array(array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind not in "biufcSU":
        raise CannotSave(f"an array of {array.dtype} is there")
    return torch.from_numpy(np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8).copy())


def _in_python(kind: type) -> bool:
    """Whether a class and its bases are written in Python, so that attributes are all of its state."""
    for base in kind.__mro__[:-1]:
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if base.__module__ != "__main__" and not str(file).endswith(".py"):
            return False
    return True


def _blank(name: str) -> Any:
    """An object without attributes of a class that is imported already."""
    module_name, _, attribute = name.rpartition(".")
    while module_name and module_name not in sys.modules:  # a class in a class
        module_name, _, outer = module_name.rpartition(".")
        attribute = f"{outer}.{attribute}"
    found: Any = sys.modules.get(module_name)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not _in_python(found):
        raise CannotSave(f"there is no class {name} here")
    return object.__new__(found)


def _own(value: Any) -> Any:
    """What an environment says itself of its state; None if it does not."""
    if not isinstance(value, gymnasium.Env) or isinstance(value, gymnasium.Wrapper):
        return None
    get, put = getattr(value, "get_state", None), getattr(value, "set_state", None)
    if not callable(get) or not callable(put):
        return None
    try:  # MuJoCo's has two arguments, and is another thing
        inspect.signature(get).bind()
        inspect.signature(put).bind(None)
    except (TypeError, ValueError):
        return None
    return get()


def _random_state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return dict(generator.bit_generator.state)
    return generator.getstate() if isinstance(generator, random.Random) else list(generator.get_state())


def _with_random_state(now: Any, state: Any) -> Any:
    if isinstance(state, dict):
        kind = getattr(np.random, state["bit_generator"])
        made = now if isinstance(now, np.random.Generator) and isinstance(now.bit_generator, kind) else None
        made = made or np.random.Generator(kind())
        made.bit_generator.state = state
        return made
    if isinstance(state, list):
        old = now if isinstance(now, np.random.RandomState) else np.random.RandomState()
        old.set_state(tuple(state))
        return old
    plain = now if isinstance(now, random.Random) else random.Random()
    plain.setstate(state)
    return plain


def _ale_state(ale: Any) -> bytes:
    state: bytes = ale.cloneSystemState().serialize()  # with its random numbers
    return state


def _set_ale(ale: Any, saved: bytes) -> Any:
    kind: Any = type(ale.cloneSystemState())
    state = kind.__new__(kind)
    state.__setstate__(saved)
    ale.restoreSystemState(state)
    return ale
