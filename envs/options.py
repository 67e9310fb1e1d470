"""Options of parts: what their annotations say is what a config may give. No torch is imported here.

An option `gamma: Annotated[float, Range(0, 1)] = 0.99` takes numbers from 0 to 1. Types come from the annotation, never
from the default: `momentum: float = 0` takes 0.9. A number without a range must be finite and below `LARGEST`.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lifelong.envs.errors import nearest

#: no option is meant to be larger than this
LARGEST = 1e15


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; without `low` itself if it is `above`."""

    low: float = -LARGEST
    high: float = LARGEST
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'of at least'} {_shown(self.low)}"
        high = f"at most {_shown(self.high)}"
        if self.high >= LARGEST:
            return low
        return high if self.low <= -LARGEST else f"{low} and {high}"


def _shown(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e7 else f"{value:g}"


#: a share or a probability
Share = Annotated[float, Range(0.0, 1.0)]
#: a weight, a strength, a width
Weight = Annotated[float, Range(0.0, 1e9)]
#: how many of something that is kept in memory or done one after the other
Count = Annotated[int, Range(1, 10**6)]
#: environment steps; 0 where that switches something off
Steps = Annotated[int, Range(0, 10**15)]
#: units of a layer
Width = Annotated[int, Range(1, 10**6)]
#: units of several layers
Widths = Sequence[Width]
#: a number of either sign that parameters begin with
Bias = Annotated[float, Range(-1e6, 1e6)]
#: two of them
Interval = tuple[Bias, Bias]

_OF_NUMBERS = Range()


def brief(value: Any) -> str:
    """A value as it is shown in a sentence: printable and not long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def problem(hint: Any, value: Any) -> str | None:
    """What is wrong with `value` for an option annotated `hint`, as the end of "it must be ...", or None.

    `hint` may be a simple type, Annotated with a Range, Literal, an optional, a union, a list, tuple or mapping of
    these, or Any.
    """
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        ranges = [extra for extra in extras if isinstance(extra, Range)]
        return _simple(inner, value, ranges[0]) if ranges else problem(inner, value)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        problems = [problem(argument, value) for argument in arguments if argument is not type(None)]
        if (value is None and type(None) in arguments) or None in problems:
            return None
        said = [p for p in problems if p]
        return " or ".join(dict.fromkeys(said)) or "given"
    if origin is Literal:
        names = [str(argument) for argument in arguments]
        fits = value in arguments and not isinstance(value, bool)
        return None if fits else f"one of {', '.join(names)}{nearest(str(value), names)}"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return None if isinstance(value, Mapping) else "a mapping"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(origin, arguments, value)
    if hint is Any or getattr(hint, "_is_protocol", False):  # nothing can be said of a value
        return None
    if isinstance(hint, type) and hint not in (bool, int, float, str, object):
        return None if isinstance(value, hint) else f"a {hint.__name__}"
    return _simple(hint, value, _OF_NUMBERS)


def _sequence(origin: type, arguments: tuple[Any, ...], value: Any) -> str | None:
    if not isinstance(value, (list, tuple)):
        return "a list"
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        return f"a list of {len(arguments)}"
    hints = arguments if fixed else [next(iter(arguments), Any)] * len(value)
    wrong = next((p for p in map(problem, hints, value) if p is not None), None)
    return None if wrong is None else f"a list in which each is {wrong}"


def _simple(hint: Any, value: Any, allowed: Range) -> str | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is str:
        return None if isinstance(value, str) else "a word"
    if hint not in (int, float):
        return None
    kind = "an integer" if hint is int else "a number"
    if not number or (hint is int and not isinstance(value, int)):
        return kind
    if not (isinstance(value, int) or math.isfinite(value)) or value not in allowed:
        if allowed is _OF_NUMBERS:
            return f"{kind} of ordinary size"
        return f"{kind} of at most {LARGEST:g}" if value > LARGEST else f"{kind} {allowed}"
    return None


def parameters_of(part: type) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The options of a part: arguments of its `__init__` with a default, and their annotations; those of a base are
    among them as far as they are handed on (`**options`)."""
    inits = [init for cls in inspect.getmro(part)[:-1] if (init := cls.__dict__.get("__init__"))]
    closed = [all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()) for init in inits]
    reached = inits[: closed.index(True) + 1] if True in closed else inits
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for init in reversed(reached):
        try:
            hints = get_type_hints(init, include_extras=True)
        except Exception:  # annotations of somebody else's code may name what is not there
            hints = {}
        for name, parameter in inspect.signature(init).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                found[name] = parameter, hints.get(name, Any)
    return found
