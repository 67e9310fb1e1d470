"""The objective contract: what a chunk's outputs should have been."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from agent.modules.heads import Distribution
from agent.parallel import ALONE, Workers
from agent.policy import Outputs
from replay.chunk import Chunk

Metrics = dict[str, Tensor]


class Mean:
    """Means over the steps that count.

    With several workers `mean(x)` is this worker's part: the average of the parts over the workers is the mean over the
    steps of all of them, however many steps count on each. That is what happens to gradients and to logged scalars.

    Args:
        weight: [T, B], 0 for steps that do not count.
        workers: those whose steps are meant.
    """

    def __init__(self, weight: Tensor, workers: Workers = ALONE) -> None:
        self.weight, self.workers = weight, workers
        self.total = weight.sum()  # of a worker on average
        workers.mean_([self.total])
        self.total = self.total.clamp(min=1.0 / workers.count)

    def __call__(self, x: Tensor) -> Tensor:
        """This worker's part of the mean of `x` [T, B], a scalar."""
        return (x * self.weight).sum() / self.total

    def of_all(self, x: Tensor) -> Tensor:
        """The mean of `x` over all workers, a scalar without gradient."""
        part = self(x).detach()
        self.workers.mean_([part])
        return part


class Objective:
    """Base of all objectives.

    Args:
        distribution: of the policy's actions.
    """

    #: whether data of an older policy (replay) is corrected for, so that strategies may mix it in
    off_policy: ClassVar[bool] = False
    #: whether the objective needs `info["target"]` from the environment
    needs_target: ClassVar[bool] = False
    epochs: int = 1
    minibatches: int = 1
    #: the data-parallel workers whose steps the means are taken over
    workers: Workers = ALONE

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution

    def prepare(self, chunk: Chunk) -> dict[str, Tensor]:
        """Tensors [T, B] that are computed once a chunk, before its first epoch (advantages)."""
        return {}

    def loss(self, outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """The loss (a mean over the T x B steps that count) and scalars for the log.

        Args:
            outputs: the current policy's outputs on the chunk.
            chunk: the data; may hold replayed copies besides the live ones.
            prepared: what `prepare` returned, for the same copies.
        """
        raise NotImplementedError


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 - Var(target - value) / Var(target); 1 is perfect, 0 no better than a constant."""
    return 1 - torch.var(target - value) / torch.var(target).clamp(min=1e-8)
