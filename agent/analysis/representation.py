"""Representations beside each other: the same inputs seen by two policies, two tasks seen by one."""

from __future__ import annotations

import torch
from torch import Tensor


def cka(x_MN: Tensor, y_MK: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same M inputs: 1 if they are the same up to
    rotation, scale and shift, 0 if they have nothing in common.

        CKA = |Y'X|^2 / (|X'X| |Y'Y|)    Frobenius norms, columns centred

    Not a number if one of them is constant. Source: Kornblith, Norouzi, Lee & Hinton 2019, ICML, equation 5.
    """
    x, y = _centred(x_MN), _centred(y_MK)
    below = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).square().sum() / below) if below > 0 else float("nan")


def overlap(x_MN: Tensor, y_KN: Tensor, share: float = 0.99) -> float:
    """How much of the variance of x lies in the directions that hold a `share` of the variance of y, in [0, 1].

    What is learned on y moves these directions, so it is how much of x it may disturb; gradient projection (`gpm`)
    protects such directions. Not a number if one of them is constant.
    """
    x, y = _centred(x_MN), _centred(y_KN)
    if not (x.square().sum() > 0 and y.square().sum() > 0):
        return float("nan")
    _, singular, directions = torch.linalg.svd(y, full_matrices=False)
    held = singular.square().cumsum(0) / singular.square().sum()
    rank = int((held < share).sum()) + 1
    return float((x @ directions[:rank].T).square().sum() / x.square().sum())


def _centred(x_MN: Tensor) -> Tensor:
    x = x_MN.double()
    x = x - x.mean(0)
    return x * (x.abs().amax() > 1e-12)  # what is left of a constant is rounding
