"""Tensors that grow when a run is given new tasks."""

from __future__ import annotations

from torch import Tensor


def grown(saved: Tensor, like: Tensor) -> Tensor:
    """`saved` in the shape, type and place of `like`, from which the rows and columns come that are new.

    What a task adds (a head, an input of the one-hot task) stands behind what was there, along any dimension.

    Raises:
        ValueError: `saved` is larger, or has other dimensions.
    """
    if saved.shape == like.shape:
        return saved.to(like)
    if saved.dim() != like.dim() or any(old > new for old, new in zip(saved.shape, like.shape, strict=True)):
        raise ValueError(f"a tensor of shape {tuple(saved.shape)} cannot grow to {tuple(like.shape)}")
    result = like.detach().clone()
    result[tuple(slice(0, size) for size in saved.shape)] = saved.to(like)
    return result
