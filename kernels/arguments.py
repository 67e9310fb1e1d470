"""What several compiled backends hand to their C functions."""

from __future__ import annotations

import torch

_zeros: dict[tuple[torch.dtype, int], torch.Tensor] = {}


def pointer(tensor: torch.Tensor | None) -> int | None:
    """The address of a contiguous tensor's first element; None (NULL) for None."""
    return None if tensor is None else tensor.data_ptr()


def zeros(n: int, dtype: torch.dtype) -> torch.Tensor:
    """n zeros, which is what a step reads where the state was reset. They stay allocated."""
    row = _zeros.get((dtype, n))
    if row is None:
        row = _zeros[dtype, n] = torch.zeros(n, dtype=dtype)
    return row


def zero_row(n: int, dtype: torch.dtype) -> int:
    """The address of `zeros`."""
    return zeros(n, dtype).data_ptr()
