"""Longhorn, a state-space model that is an online learner (Liu, Wang, Wu, Feng, Stone & Liu 2024, "Longhorn: State
Space Models are Amortized Online Learners", arXiv 2407.14207, eqs. 9-11)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.linear import LinearCell
from lifelong.agent.cells.matrix import MatrixCell


class Longhorn(MatrixCell, LinearCell):
    """b = sigmoid(W_b x + b_b), d = b / (1 + b |k|^2), S' = (1 - d k^2) S + d v k, y = (q S') silu(W_g x + b_g).

    One implicit step on |S k - v|^2 with the step size b, its matrix k k^T by its diagonal, as in the paper. The skip
    connection and convolution of the paper's block are what is around the cell.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        keys: K, numbers of a key and of a unit's state.
        heads: H; the units are shared out evenly.
    """

    GATES: ClassVar[tuple[str, ...]] = ("value", "rate")
    KEYS: ClassVar[tuple[str, ...]] = ("key",)
    EVERY: ClassVar[tuple[str, ...]] = ("key",)
    READS: ClassVar[tuple[str, ...]] = ("input",)

    def coefficients(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        value, rate, key, *every = drives
        rate = torch.sigmoid(rate)
        step = rate / (1 + rate * sum((each * each for each in every[1:]), every[0] * every[0]))
        return 1 - step * key * key, step * value * key
