"""SRU, the simple recurrent unit (Lei, Zhang, Wang, Dai & Artzi 2018, "Simple Recurrent Units for Highly Parallelizable
Recurrence", arXiv 1709.02755, eqs. 3-6)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import BlockCell
from lifelong.envs.options import Interval, Width


class SRU(BlockCell):
    """f, r = sigmoid(W x + v c + b), c' = f c + (1-f) (W_c x + b_c), h' = r c' + (1-r) (W_s x + b_s). State [h | c].

    The highway carries W_s x where the paper, whose input is as wide as the layer, carries x.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        forget_bias: b_f is drawn uniformly from [low, high]: a spread of time constants from the first step on.
    """

    GATES: ClassVar[tuple[str, ...]] = ("forget", "reset", "candidate", "skip")
    VECTORS: ClassVar[tuple[str, ...]] = ("forget", "reset")

    def __init__(
        self, input_size: int, *, size: Width = 128, forget_bias: Interval = (0.0, 4.0), **options: Any
    ) -> None:
        super().__init__(input_size, size=size, **options)
        with torch.no_grad():
            self.bias[:size].uniform_(*(float(b) for b in forget_bias))

    def recurrence(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        f = torch.sigmoid(drives[0] + vectors[0] * c)
        r = torch.sigmoid(drives[1] + vectors[1] * c)
        c = f * c + (1 - f) * drives[2]
        return r * c + (1 - r) * drives[3], c
