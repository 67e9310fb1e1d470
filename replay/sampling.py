"""Sampling policies: which rows of the buffer are replayed."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampling:
    """Base of all sampling policies."""

    def rows(self, count: int, size: int, stamp: Tensor, generator: torch.Generator) -> Tensor:
        """`count` rows below `size`, int64, drawn with replacement; `stamp` [size] is when each row was written."""
        raise NotImplementedError


class Uniform(Sampling):
    """Every row alike."""

    def rows(self, count: int, size: int, stamp: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(size, (count,), generator=generator)


SAMPLING: dict[str, type[Sampling]] = {"uniform": Uniform}
