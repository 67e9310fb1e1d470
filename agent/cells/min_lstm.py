"""minLSTM: an LSTM without its dependence on the state (Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, "Were RNNs All
We Needed?", arXiv 2410.01201, section 3.2)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.linear import LinearCell
from lifelong.envs.options import Interval, Width


class MinLSTM(LinearCell):
    """f, i = sigmoid(W x + b), h' = (f h + i (W_h x + b_h)) / (f + i).

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        forget_bias: b_f is drawn uniformly from [low, high]: a spread of time constants from the first step on.
    """

    GATES: ClassVar[tuple[str, ...]] = ("forget", "input", "candidate")

    def __init__(
        self, input_size: int, *, size: Width = 128, forget_bias: Interval = (0.0, 4.0), **options: Any
    ) -> None:
        super().__init__(input_size, size=size, **options)
        with torch.no_grad():
            self.bias[:size].uniform_(*(float(b) for b in forget_bias))

    def coefficients(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        f, i = torch.sigmoid(drives[0]), torch.sigmoid(drives[1])
        return f / (f + i), i / (f + i) * drives[2]
