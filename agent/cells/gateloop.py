"""GateLoop with as many heads as units (Katsch 2023, "GateLoop: Fully Data-Controlled Linear Recurrence for Sequence
Modeling", arXiv 2311.01927, eqs. 5-8)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.linear import ComplexCell


class GateLoop(ComplexCell):
    """a = sigmoid(W_m x + b_m) e^{i (W_p x + b_p)}, h' = a h + k v, y = q Re h' with q, k, v linear in x.

    Magnitude and phase of what is kept are both controlled by the data. State [Re h | Im h].

    Args:
        input_size: D.
        size: N, the number of complex units; also the output size.
    """

    GATES: ClassVar[tuple[str, ...]] = ("key", "value", "magnitude", "phase")
    READS: ClassVar[tuple[str, ...]] = ("input",)

    def coefficients(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        key, value, magnitude, phase = drives
        kept = torch.sigmoid(magnitude)
        return kept * torch.cos(phase), kept * torch.sin(phase), key * value, 0 * key

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        return self.output_drive(x, state) * state[..., : self.size]
