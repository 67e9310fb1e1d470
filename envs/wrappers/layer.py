"""Layer: a wrapper of a native environment, in batched tensors like the environment itself.

A layer is mixed into the class of the environment and overrides some of the four functions of `BatchedEnv`, so what is
wrapped is a `BatchedEnv` with the same parameters: it is saved, cloned, partly reset and compiled as every other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, make_dataclass
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from lifelong.envs.base import BatchedEnv
from lifelong.envs.errors import EnvError, nearest, unknown_name
from lifelong.envs.options import brief, problem
from lifelong.envs.registry import LAYERS, import_part

#: where a run has what others have as a wrapper
ELSEWHERE = {
    "normalize_observation": "policy.normalize_observations: true, whose statistics are saved with the policy",
    "normalize_reward": "strategy: normalize_rewards, whose statistics are saved with the strategy",
    "time_limit": "the parameter max_episode_steps, which every native environment has",
}


class Layer(BatchedEnv):
    """Base of what stands between a native environment and its agent.

    Subclasses override `spaces`, `draw_state`, `advance` or `observe` and call `super()` for the environment's own.
    What a layer has to remember goes into the state: `put` adds tensors of its own to a state of the environment, and
    `own` takes them out again.
    """

    #: option -> (default, annotation); the values are attributes of the class of what is wrapped
    OPTIONS: ClassVar[dict[str, tuple[Any, Any]]] = {}

    @classmethod
    def fits(cls, wrapped: type[BatchedEnv]) -> str:
        """Why a class of environments cannot be wrapped so, as the end of a sentence; empty if it can."""
        return ""

    def put(self, state: Any, **own: Tensor) -> Any:
        """`state` with tensors [B, ...] of the layer's own."""
        values = {f.name: getattr(state, f.name) for f in fields(state)}
        kind: Any = type(state)
        return _with(kind, tuple(own))(**values, **own)

    def own(self, state: Any) -> Any:
        """The state that `put` was given."""
        kind = type(state).WITHOUT
        return kind(**{f.name: getattr(state, f.name) for f in fields(kind)})


@cache
def _with(kind: Any, names: tuple[str, ...]) -> Any:
    """The class of states of `kind` with further tensors."""
    every = [*((f.name, Tensor) for f in fields(kind)), *((name, Tensor) for name in names)]
    made: Any = make_dataclass(kind.__name__, every, frozen=True)
    made.WITHOUT = kind
    return made


def layered(cls: type[BatchedEnv], wrappers: Any) -> type[BatchedEnv]:
    """The class of native environments in wrappers, from the inside.

    Args:
        cls: of the environments.
        wrappers: names of `LAYERS` or `module:Class`, or mappings with such a `kind` and options.

    Raises:
        EnvError: an unknown wrapper, an option that it does not have or refuses, or one that does not fit.
    """
    if not isinstance(wrappers, Sequence) or isinstance(wrappers, str):
        raise EnvError(f"wrappers is {brief(wrappers)}; it must be a list of names, or mappings with a kind")
    for spec in wrappers:
        options = {"kind": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
        kind = options.pop("kind", None)
        cls = _mixed(cls, _layer(cls, kind), {**options})
    return cls


def _layer(cls: type[BatchedEnv], kind: Any) -> type[Layer]:
    if not isinstance(kind, str) or (kind not in LAYERS and ":" not in kind):
        plain = str(kind).lower().replace("_", "")
        there = next((where for name, where in ELSEWHERE.items() if plain.startswith(name.replace("_", ""))), None)
        if there:
            raise EnvError(f"{kind} is no wrapper of native environments; use {there}")
        raise EnvError(unknown_name(f"wrapper of {cls.__name__}, which is native,", str(kind), LAYERS))
    layer = import_part("wrapper", kind, LAYERS)
    if not (isinstance(layer, type) and issubclass(layer, Layer)):
        raise EnvError(
            f"wrapper {kind} is no subclass of lifelong.envs.wrappers.layer.Layer, as wrappers of native environments "
            f"are; {cls.__name__} is native"
        )
    return layer


def _mixed(cls: type[BatchedEnv], layer: type[Layer], options: Mapping[str, Any]) -> type[BatchedEnv]:
    values = {name: default for name, (default, _) in layer.OPTIONS.items()}
    for name, value in options.items():
        if name not in values:
            raise EnvError(
                f"wrapper {layer.__name__} has no option {name!r}{nearest(name, values)}; valid: {', '.join(values)}"
            )
        wrong = problem(layer.OPTIONS[name][1], value)
        if wrong is not None:
            raise EnvError(f"wrapper {layer.__name__}: {name} is {brief(value)}; it must be {wrong}")
        values[name] = value
    if issubclass(cls, layer):
        raise EnvError(f"wrapper {layer.__name__} is listed twice; give it once")
    unfit = layer.fits(cls)
    if unfit:
        raise EnvError(f"wrapper {layer.__name__} cannot wrap {cls.__name__}, {unfit}")
    key: Any = cls, layer
    made: type[BatchedEnv] = _class(*key, tuple(sorted(values.items())))
    return made


@cache
def _class(cls: Any, layer: Any, values: tuple[tuple[str, Any], ...]) -> Any:
    """One class for one set of options, so that what is compiled for it is found again."""
    return type(f"{cls.__name__}{layer.__name__}", (layer, cls), {**dict(values), "__doc__": cls.__doc__})
