"""Diagonal GRU: a GRU whose recurrent weights are element-wise (ParaGRU; Danieli et al. 2025, "ParaRNN")."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import DiagonalCell
from lifelong.envs.options import Interval, Width


class DiagonalGRU(DiagonalCell):
    """z, r = sigmoid(W x + v h + b), n = tanh(W_n x + v_n (r h) + b_n), h' = (1-z) h + z n. Order z, r, n.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        update_bias: b_z is drawn uniformly from [low, high]: a spread of time constants from the first step on.
    """

    GATES: ClassVar[tuple[str, ...]] = ("update", "reset", "candidate")
    VECTORS: ClassVar[tuple[str, ...]] = ("update", "reset", "candidate")

    def __init__(
        self, input_size: int, *, size: Width = 128, update_bias: Interval = (-4.0, 0.0), **options: Any
    ) -> None:
        super().__init__(input_size, size=size, **options)
        low, high = (float(b) for b in update_bias)
        with torch.no_grad():
            self.bias[:size].uniform_(low, high)

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        z = torch.sigmoid(drives[0] + vectors[0] * c)
        r = torch.sigmoid(drives[1] + vectors[1] * c)
        return c + z * (torch.tanh(drives[2] + vectors[2] * (r * c)) - c)
