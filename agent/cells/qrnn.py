"""QRNN, the quasi-recurrent network with a filter of width two (Bradbury, Merity, Xiong & Socher 2017, "Quasi-Recurrent
Neural Networks", arXiv 1611.01576, eqs. 2-5)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import BlockCell
from lifelong.envs.options import Interval, Width


class QRNN(BlockCell):
    """z = tanh(W_z x + V_z x_before + b_z), f = sigmoid(W_f x + V_f x_before + b_f), c' = f c + (1-f) z,
    y = sigmoid(W_o x + b_o) c'. State [c | V_z x | V_f x]; before the first input there were zeros.

    The output gate, which is no part of the recurrence, reads the last input alone.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        forget_bias: b_f is drawn uniformly from [low, high]: a spread of time constants from the first step on.
    """

    PARTS: ClassVar[int] = 3
    GATES: ClassVar[tuple[str, ...]] = ("forget", "candidate", "forget_before", "candidate_before")
    READS: ClassVar[tuple[str, ...]] = ("input",)

    def __init__(
        self, input_size: int, *, size: Width = 128, forget_bias: Interval = (0.0, 4.0), **options: Any
    ) -> None:
        super().__init__(input_size, size=size, **options)
        with torch.no_grad():
            self.bias[:size].uniform_(*(float(b) for b in forget_bias))

    def recurrence(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor, candidate: Tensor, forget: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, f = torch.tanh(drives[1] + candidate), torch.sigmoid(drives[0] + forget)
        return z + f * (c - z), drives[3], drives[2]

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.sigmoid(self.output_drive(x, state)) * state[..., : self.size]
