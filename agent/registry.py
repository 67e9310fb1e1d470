"""Every part that a config can name, one line each: kind -> name -> "module:Class". Imports nothing heavy.

A user's own part needs no line here: `kind: my_package.my_module:MyClass` works wherever a name does.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from lifelong.agent.errors import ConfigError, unknown_name
from lifelong.envs.registry import ENVIRONMENTS

REGISTRY: dict[str, dict[str, str]] = {
    "env": ENVIRONMENTS,
    "schedule": {
        "sequential": "lifelong.envs.stream:Sequential",
        "interleaved": "lifelong.envs.stream:Interleaved",
        "random": "lifelong.envs.stream:Random",
        "blurry": "lifelong.envs.stream:Blurry",
        "drift": "lifelong.envs.stream:Drift",
    },
    "encoder": {
        "identity": "lifelong.agent.modules.encoders:Identity",
        "mlp": "lifelong.agent.modules.encoders:MLP",
        "cnn": "lifelong.agent.modules.encoders:CNN",
    },
    "cell": {
        "diagonal_gru": "lifelong.agent.cells.diagonal_gru:DiagonalGRU",
        "diagonal_lstm": "lifelong.agent.cells.diagonal_lstm:DiagonalLSTM",
        "elstm": "lifelong.agent.cells.elstm:ELSTM",
        "gru": "lifelong.agent.cells.gru:GRU",
        "lstm": "lifelong.agent.cells.lstm:LSTM",
    },
    "gradient": {
        "bptt": "lifelong.agent.gradients.bptt:BPTT",
        "rtrl": "lifelong.agent.gradients.rtrl:RTRL",
    },
    "objective": {
        "actor_critic": "lifelong.agent.objectives.actor_critic:ActorCritic",
        "ppo": "lifelong.agent.objectives.ppo:PPO",
        "supervised": "lifelong.agent.objectives.supervised:Supervised",
    },
    "strategy": {
        "finetune": "lifelong.agent.strategies.finetune:Finetune",
        "ewc": "lifelong.agent.strategies.ewc:EWC",
        "clear": "lifelong.agent.strategies.clear:CLEAR",
        "gpm": "lifelong.agent.strategies.gpm:GPM",
    },
    "optimizer": {
        "adam": "torch.optim:Adam",
        "adamw": "torch.optim:AdamW",
        "sgd": "torch.optim:SGD",
        "rmsprop": "torch.optim:RMSprop",
    },
}


def check_name(kind: str, name: str) -> None:
    """Check that `name` is registered under `kind` or has the form `module:Attr`; imports nothing.

    Raises:
        ConfigError: it is neither.
    """
    if ":" not in name and name not in REGISTRY[kind]:
        raise ConfigError(unknown_name(kind, name, REGISTRY[kind]) + ", or module:Attr for your own")


def is_foreign(spec: Mapping[str, Any]) -> bool:
    """Whether a part is the user's own."""
    return ":" in spec["kind"]


def load(kind: str, name: str) -> Any:
    """The class that `name` stands for among the parts of `kind`.

    Raises:
        ConfigError: unknown name, or a `module:Attr` that cannot be imported.
    """
    check_name(kind, name)
    module_name, _, attribute = REGISTRY[kind].get(name, name).partition(":")
    try:
        part = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load {kind} {name!r}: {error}") from error
    if not isinstance(part, type):
        raise ConfigError(f"{kind} {name!r} is no class but a {type(part).__name__}")
    return part


def options_of(part: Any) -> dict[str, inspect.Parameter]:
    """The options that a config may give to a part: the arguments of its `__init__` (and its bases') with a default."""
    parameters: dict[str, inspect.Parameter] = {}
    for cls in reversed(inspect.getmro(part)):
        init = cls.__dict__.get("__init__")
        if init is not None and cls is not object:
            signature = inspect.signature(init).parameters
            parameters |= {name: p for name, p in signature.items() if p.default is not inspect.Parameter.empty}
    return parameters


def check_options(kind: str, name: str, part: Any, options: Mapping[str, Any]) -> None:
    """Check a part's options by name and by simple type before anything is built.

    Raises:
        ConfigError: unknown option, or a value whose type differs from that of the option's default.
    """
    known = options_of(part)
    for option, value in options.items():
        if option not in known:
            raise ConfigError(unknown_name(f"option of {kind} {name}", option, known))
        default = known[option].default
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ConfigError(f"{kind} {name}: {option} is {value!r}; it must be true or false")
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{kind} {name}: {option} is {value!r}; it must be a number")
            if isinstance(default, int) and not isinstance(value, int):
                raise ConfigError(f"{kind} {name}: {option} is {value!r}; it must be an integer")
        if isinstance(default, str) and not isinstance(value, str):
            raise ConfigError(f"{kind} {name}: {option} is {value!r}; it must be a name")


def build(kind: str, spec: Mapping[str, Any], *args: Any, **context: Any) -> Any:
    """Build the part that `spec` (`{"kind": name, option: value, ...}`) describes.

    `args` are the positional arguments that the runtime gives to every part of the kind; `context` are keyword
    arguments that it gives besides the user's options.

    Raises:
        ConfigError: unknown name or option, or a value that the part refuses.
    """
    options = {key: value for key, value in spec.items() if key != "kind"}
    name = spec["kind"]
    part = load(kind, name)
    check_options(kind, name, part, options)
    try:
        return part(*args, **options, **context)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{kind} {name}: {error}") from error
