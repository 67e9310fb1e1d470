"""Write policies: which row of the buffer a new sequence goes to."""

from __future__ import annotations

import torch
from torch import Tensor


class Writing:
    """Base of all write policies."""

    def rows(self, count: int, seen: int, capacity: int, generator: torch.Generator) -> Tensor:
        """The row of each of `count` new sequences, int64; -1 drops it. `seen` sequences were offered before."""
        raise NotImplementedError

    def resized(self, size: int, seen: int, had: int, capacity: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """What a buffer of `had` rows, `size` of them in use, keeps when it gets `capacity` rows.

        Returns:
            The rows that are kept, int64, in the order in which they become the first rows; and `seen` from then on.
        """
        raise NotImplementedError


class Ring(Writing):
    """The newest sequences replace the oldest."""

    def rows(self, count: int, seen: int, capacity: int, generator: torch.Generator) -> Tensor:
        return (seen + torch.arange(count)) % capacity

    def resized(self, size: int, seen: int, had: int, capacity: int, generator: torch.Generator) -> tuple[Tensor, int]:
        kept = min(size, capacity)  # the newest
        return (seen - kept + torch.arange(kept)) % had, kept


class Reservoir(Writing):
    """Every sequence ever offered is in the buffer with the same probability (Vitter 1985, algorithm R).

    A smaller buffer keeps that. A larger one cannot bring back what was dropped: what it holds counts as all that was
    offered so far.
    """

    def rows(self, count: int, seen: int, capacity: int, generator: torch.Generator) -> Tensor:
        position = seen + torch.arange(count)
        drawn = (torch.rand(count, generator=generator, dtype=torch.float64) * (position + 1)).long()
        drawn = torch.where(drawn < capacity, drawn, torch.full_like(drawn, -1))
        return torch.where(position < capacity, position, drawn)

    def resized(self, size: int, seen: int, had: int, capacity: int, generator: torch.Generator) -> tuple[Tensor, int]:
        if capacity >= size:
            return torch.arange(size), size if capacity > had else seen
        return torch.randperm(size, generator=generator)[:capacity].sort().values, seen


WRITING: dict[str, type[Writing]] = {"ring": Ring, "reservoir": Reservoir}
