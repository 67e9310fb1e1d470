"""Diagonal LSTM: element-wise recurrent weights, 2x2 blocks as Jacobian (ParaLSTM; Danieli et al. 2025, "ParaRNN")."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import BlockCell
from lifelong.envs.options import Interval, Width


class DiagonalLSTM(BlockCell):
    """f = sigmoid(W_f x + a_f h + p_f c + b_f), g = tanh(W_g x + a_g h + b_g), c' = f c + (1-f) g,
    o = sigmoid(W_o x + a_o h + p_o c' + b_o), h' = o tanh(c'). State [h | c].

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        forget_bias: b_f is drawn uniformly from [low, high]: a spread of time constants from the first step on.
    """

    GATES: ClassVar[tuple[str, ...]] = ("forget", "candidate", "output")
    VECTORS: ClassVar[tuple[str, ...]] = ("forget", "candidate", "output", "forget_peephole", "output_peephole")

    def __init__(
        self, input_size: int, *, size: Width = 128, forget_bias: Interval = (0.0, 4.0), **options: Any
    ) -> None:
        super().__init__(input_size, size=size, **options)
        low, high = (float(b) for b in forget_bias)
        with torch.no_grad():
            self.bias[:size].uniform_(low, high)

    def recurrence(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        f = torch.sigmoid(drives[0] + vectors[0] * h + vectors[3] * c)
        g = torch.tanh(drives[1] + vectors[1] * h)
        c = g + f * (c - g)
        return torch.sigmoid(drives[2] + vectors[2] * h + vectors[4] * c) * torch.tanh(c), c
