"""Hooks of an update as compiled calls: strategies that do not keep a run from its plan (see `runtime.planned.plan`).

A strategy says with `Strategy.calls` what its hooks do in place on parameters and gradients:

    before_loss         once a chunk
    extra_loss          after the backward pass: adds to loss and gradients
    transform_gradients
    (clipping, the optimiser's step)
    transform_update, after_update      where loss and norm of the gradient are finite

One that replays says with `Strategy.replays` what it replays and what it learns from it, in place of `transform_batch`,
`extra_loss` and `after_chunk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lifelong.kernels.loop import Direct, Each
from lifelong.replay.buffer import SequenceReplay

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


class Match(NamedTuple):
    """What the policy is held to on the copies of the first draw.

    Attributes:
        distance: of the distribution's parameters from those recorded: squared, or KL(recorded || now).
        weights: of that distance, and of the squared distance of the values.
        of_all: whether what is held is divided by the weights of all steps, live and replayed, or by its own.
        names: of both distances in the strategy's metrics.
    """

    distance: Literal["squared", "kl"]
    weights: tuple[float, float]
    of_all: bool
    names: tuple[str, str]


@dataclass
class Replays:
    """What a strategy replays beside so many live copies, which it stores.

    Attributes:
        buffer: where they are stored.
        begin: sequences that must be there before it replays.
        draws: copies of each draw, and the factor of the weights that they are stored with.
        match: what is added to the loss; None: nothing.
        metrics: what it reports, written over.
    """

    buffer: SequenceReplay
    begin: int
    draws: list[tuple[int, float]]
    match: Match | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def drawing(self) -> bool:
        """Whether it has begun to replay."""
        return self.buffer.size >= self.begin

    def before(self, copies: int) -> int:
        """Chunks of so many copies before it begins, at least."""
        return -(-(self.begin - self.buffer.size) // copies)


def compiled(strategy: Any, base: Any) -> bool:
    """Whether `calls` or `replays` cover all that a strategy does in an update: a subclass with a hook of its own has
    to say so."""
    order = type(strategy).__mro__

    def owner(name: str) -> int:
        return next((place for place, each in enumerate(order) if name in vars(each)), len(order))

    mine = [owner(name) for name in HOOKS if getattr(type(strategy), name) is not getattr(base, name)]
    told = [owner(name) for name in ("calls", "replays") if getattr(type(strategy), name) is not getattr(base, name)]
    return not mine or (bool(told) and min(told) <= min(mine))


def hook_calls(strategies: Sequence[Any], update: Update) -> HookCalls:
    """The calls of all strategies in their order."""
    found: HookCalls = {}
    for strategy in strategies:
        for name, calls in strategy.calls(update).items():
            found.setdefault(name, []).extend(calls)
    return found
