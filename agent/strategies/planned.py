"""Hooks of an update as compiled calls: strategies that do not keep a run from its plan (see `runtime.planned.plan`).

A strategy says with `Strategy.calls` what its hooks do in place on parameters and gradients:

    before_loss         once a chunk
    extra_loss          after the backward pass: adds to loss and gradients
    transform_gradients
    (clipping, the optimiser's step)
    transform_update, after_update      where loss and norm of the gradient are finite
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lifelong.kernels.loop import Direct, Each

#: what a strategy may do in an update, and to the data it learns from
HOOKS = (
    *("learns", "extra_reward", "transform_batch"),
    *("extra_loss", "transform_gradients", "transform_update", "after_update"),
)


class Update(NamedTuple):
    """What the calls may read and write.

    Attributes:
        parameters: by name.
        gradients: by name; each has its place until the program ends.
        loss: of an update, [1] of each.
        watched: loss and norm of an update's gradient; nothing is to be done after the step if they are not finite.
        entropy_weight: of the objective, a float64 scalar that is set at the beginning of every chunk.
        step: environment steps when a chunk begins, an int64 scalar.
    """

    parameters: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    loss: Each
    watched: Each
    entropy_weight: Tensor
    step: Tensor


#: calls by the names above
HookCalls = dict[str, list[Direct]]


def compiled(strategy: Any, base: Any) -> bool:
    """Whether `calls` covers all that a strategy does in an update: a subclass with a hook of its own has to say so."""
    order = type(strategy).__mro__

    def owner(name: str) -> int:
        return next(place for place, each in enumerate(order) if name in vars(each))

    mine = [owner(name) for name in HOOKS if getattr(type(strategy), name) is not getattr(base, name)]
    return not mine or (type(strategy).calls is not base.calls and owner("calls") <= min(mine))


def hook_calls(strategies: Sequence[Any], update: Update) -> HookCalls:
    """The calls of all strategies in their order."""
    found: HookCalls = {}
    for strategy in strategies:
        for name, calls in strategy.calls(update).items():
            found.setdefault(name, []).extend(calls)
    return found
