"""Write policies: which row of the buffer a new sequence goes to."""

from __future__ import annotations

import torch
from torch import Tensor


class Writing:
    """Base of all write policies."""

    def rows(self, count: int, seen: int, capacity: int, generator: torch.Generator) -> Tensor:
        """The row of each of `count` new sequences, int64; -1 drops it. `seen` sequences were offered before."""
        raise NotImplementedError


class Ring(Writing):
    """The newest sequences replace the oldest."""

    def rows(self, count: int, seen: int, capacity: int, generator: torch.Generator) -> Tensor:
        return (seen + torch.arange(count)) % capacity


class Reservoir(Writing):
    """Every sequence ever offered is in the buffer with the same probability (Vitter 1985, algorithm R)."""

    def rows(self, count: int, seen: int, capacity: int, generator: torch.Generator) -> Tensor:
        position = seen + torch.arange(count)
        drawn = (torch.rand(count, generator=generator, dtype=torch.float64) * (position + 1)).long()
        drawn = torch.where(drawn < capacity, drawn, torch.full_like(drawn, -1))
        return torch.where(position < capacity, position, drawn)


WRITING: dict[str, type[Writing]] = {"ring": Ring, "reservoir": Reservoir}
