"""Sampling policies: which rows of the buffer are replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor


class Sampling:
    """Base of all sampling policies. Everything is on the host."""

    #: whether it reads the tasks of rows; those are zero otherwise
    by_task: ClassVar[bool] = False

    def rows(self, count: int, stamp: Tensor, task: Tensor, now: int, generator: torch.Generator) -> Tensor:
        """`count` of the rows in use, int64, drawn with replacement.

        Args:
            count: how many.
            stamp: environment step at which each row was written, int64 [size].
            task: of each row, int64 [size].
            now: environment step.
            generator: of the draws.
        """
        raise NotImplementedError


class Uniform(Sampling):
    """Every row alike."""

    def rows(self, count: int, stamp: Tensor, task: Tensor, now: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(stamp), (count,), generator=generator)


class PowerLaw(Sampling):
    """A row of age a (environment steps) with a probability in proportion to a^-d, as in environments whose tasks come
    back according to a power law (Anderson & Schooler 1991; Gandhi et al. 2024).

    Args:
        exponent: d; 0 is uniform.
    """

    def __init__(self, exponent: float = 0.5) -> None:
        self.exponent = exponent

    def rows(self, count: int, stamp: Tensor, task: Tensor, now: int, generator: torch.Generator) -> Tensor:
        age = (now - stamp).clamp(min=1).double()
        return _drawn((age / age.min()).pow(-self.exponent), count, generator)


class TaskBalanced(Sampling):
    """Every task that the buffer holds alike, and every row of a task alike."""

    by_task: ClassVar[bool] = True

    def rows(self, count: int, stamp: Tensor, task: Tensor, now: int, generator: torch.Generator) -> Tensor:
        _, which, held = task.unique(return_inverse=True, return_counts=True)
        return _drawn(1.0 / held[which].double(), count, generator)


def _drawn(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices with probabilities in proportion to `weight` (float64)."""
    edges = weight.cumsum(0)
    point = torch.rand(count, generator=generator, dtype=torch.float64) * edges[-1]
    return torch.searchsorted(edges, point, right=True).clamp(max=len(weight) - 1)


SAMPLING: dict[str, Callable[[], Sampling]] = {
    "uniform": Uniform,
    "power_law": PowerLaw,
    "task_balanced": TaskBalanced,
}
