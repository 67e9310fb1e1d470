"""minGRU: a GRU without its dependence on the state (Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, "Were RNNs All We
Needed?", arXiv 2410.01201, section 3.1)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.linear import LinearCell
from lifelong.envs.options import Interval, Width


class MinGRU(LinearCell):
    """z = sigmoid(W_z x + b_z), h' = (1-z) h + z (W_h x + b_h).

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        update_bias: b_z is drawn uniformly from [low, high]: a spread of time constants from the first step on.
    """

    GATES: ClassVar[tuple[str, ...]] = ("update", "candidate")

    def __init__(
        self, input_size: int, *, size: Width = 128, update_bias: Interval = (-4.0, 0.0), **options: Any
    ) -> None:
        super().__init__(input_size, size=size, **options)
        with torch.no_grad():
            self.bias[:size].uniform_(*(float(b) for b in update_bias))

    def coefficients(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        z = torch.sigmoid(drives[0])
        return 1 - z, z * drives[1]
