"""The objective contract: what a chunk's outputs should have been."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor

from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.modules.heads import Distribution, distribution_of
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.policy import Outputs, Policy
from lifelong.envs.options import Count
from lifelong.replay.chunk import Chunk

Metrics = dict[str, Tensor]


class Mean:
    """Means over the steps that count.

    With several workers `mean(x)` is this worker's part: the average of the parts over the workers is the mean over the
    steps of all of them, however many steps count on each. That is what happens to gradients and to logged scalars.

    Args:
        weight: [T, B], 0 for steps that do not count.
        workers: those whose steps are meant.
        total: sum of the weights of all workers, if it is known; else they add it up here.
    """

    def __init__(self, weight: Tensor, workers: Workers = ALONE, total: Tensor | None = None) -> None:
        if total is None:
            total = workers.sum_ahead(weight.sum())()
        self.weight = weight
        self.total = (total / workers.count if workers.count > 1 else total).clamp(min=1.0 / workers.count)

    def __call__(self, x: Tensor) -> Tensor:
        """This worker's part of the mean of `x` [T, B], a scalar."""
        return (x * self.weight).sum() / self.total


def standardized(x: Tensor, weight: Tensor, workers: Workers = ALONE) -> Tensor:
    """`x` [T, B] with mean 0 and standard deviation 1 over the steps of all workers that count.

    One message: every worker's weight, mean and sum of squared deviations, combined as in Chan, Golub & LeVeque (1983),
    eq. 2.1, which cancels nothing.
    """
    own = weight.sum()
    mean = (x * weight).sum() / own.clamp(min=1.0)
    squares = ((x - mean).square() * weight).sum()
    if workers.count == 1:
        return (x - mean) / ((squares / own.clamp(min=1.0)).sqrt() + 1e-8)
    weight_N, mean_N, squares_N = workers.stack(torch.stack([own, mean, squares]).double()).unbind(1)
    total = weight_N.sum().clamp(min=1.0)
    center = (weight_N * mean_N).sum() / total
    variance = (squares_N + weight_N * (mean_N - center).square()).sum() / total
    return (x - center.to(x.dtype)) / (variance.to(x.dtype).sqrt() + 1e-8)


class Objective:
    """Base of all objectives.

    Args:
        distribution: of the policy's actions.
    """

    #: whether data of an older policy (replay) is corrected for, so that strategies may mix it in
    off_policy: ClassVar[bool] = False
    #: whether it asks for `Outputs.after` of live copies, too
    reads_after: ClassVar[bool] = False
    #: whether its loss says how wrong the outputs were at each step (`Outputs.error`)
    says_error: ClassVar[bool] = False
    #: whether the objective needs `info["target"]` from the environment
    needs_target: ClassVar[bool] = False
    #: whether it learns along traces, from one step at a time (see `agent.objectives.streaming`)
    streaming: ClassVar[bool] = False
    #: and whether step-size rules can bound its steps
    scalable: ClassVar[bool] = False
    #: options that may be a schedule: attributes of the same name, read at every chunk
    SCHEDULED: ClassVar[tuple[str, ...]] = ()
    epochs: Count = 1
    minibatches: Count = 1
    #: the data-parallel workers whose steps the means are taken over
    workers: Workers = ALONE
    #: whether as many steps count on every worker, so that they need not tell each other
    even: bool = False

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution
        self._counted: tuple[Tensor, int, Callable[[], Tensor]] | None = None  # weights, live, their sums

    @classmethod
    def acts_by(cls, space: gymnasium.Space[Any], squash: str, options: Mapping[str, Any]) -> Distribution:
        """The distribution that the policy acts by.

        Args:
            space: of the actions.
            squash: see `distribution_of`.
            options: of the objective, as far as the config gives them.

        Raises:
            ValueError: it cannot act in this space.
        """
        return distribution_of(space, squash)

    def setup(self, policy: Policy) -> None:
        """Called once before training, when the policy exists."""

    def stepped(self) -> None:
        """Called after every step of the optimiser."""

    def watching(self) -> AbstractContextManager[None]:
        """Around the forward pass of an update."""
        return nullcontext()

    def begin(self, engine: GradientEngine, trace: Any, *, extra: bool) -> None:
        """Called before an update is made with this engine and its trace of the chunk; `extra`: strategies add
        losses."""

    def passes(self, copies: int, *, extra: bool) -> int:
        """How many backward passes an update makes over a chunk of `copies`; `extra`: strategies add losses."""
        return 1

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after the backward pass of the loss, for what it does not say."""

    def reset(self, mask_B: Tensor | None = None) -> None:
        """What was learned along ends in the copies `mask_B` (bool [B]; None: all): they start anew from outside."""

    def own_state_dict(self) -> dict[str, Any]:
        """Tensors that belong to this worker's copies, each with the copies as its first dimension."""
        return {}

    def load_own_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `own_state_dict` returned; nothing, or what does not fit, is a beginning."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data that resume needs; equal on all workers."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, maybe of another objective or of a policy with fewer tasks. The policy
        has its parameters already."""

    def weight(self, chunk: Chunk) -> Tensor:
        """[T, B]: how much each step counts."""
        return chunk.weight

    def count(self, chunk: Chunk, live: int) -> None:
        """Start to add up the weights of all workers for the means over `chunk`; the forward pass hides the message.

        Copies from index `live` on are replayed. A collective operation.
        """
        if self.workers.count > 1 and not self.even:
            weight = self.weight(chunk)
            totals = torch.stack([weight[:, :live].sum(), weight[:, live:].sum()])
            self._counted = chunk.weight, live, self.workers.sum_ahead(totals)

    def mean(self, chunk: Chunk, first: int = 0) -> Mean:
        """Means over the steps of `chunk` that count, from copy `first` on: 0, or where the replayed copies begin.

        A collective operation, unless `count` announced the chunk or all workers are `even`.
        """
        weight = self.weight(chunk)[:, first:]
        if self.even:
            return Mean(weight, self.workers, weight.sum() * self.workers.count)
        if self._counted is None or self._counted[0] is not chunk.weight or first not in (0, self._counted[1]):
            return Mean(weight, self.workers)
        totals = self._counted[2]()
        return Mean(weight, self.workers, totals.sum() if first == 0 else totals[1])

    def prepare(self, chunk: Chunk) -> dict[str, Tensor]:
        """Tensors [T, B] that are computed once a chunk, before its first epoch (advantages)."""
        return {}

    def loss(self, outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """The loss (a mean over the T x B steps that count) and scalars for the log.

        Args:
            outputs: the current policy's outputs on the chunk.
            chunk: the data; may hold replayed copies besides the live ones.
            prepared: what `prepare` returned, for the same copies.

        One that `says_error` leaves in `outputs.error` the error [T, B] of each step, of any sign.
        """
        raise NotImplementedError


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 - Var(target - value) / Var(target); 1 is perfect, 0 no better than a constant."""
    return 1 - torch.var(target - value) / torch.var(target).clamp(min=1e-8)
