"""RG-LRU, the recurrence of Hawk and Griffin (De, Smith, Fernando, Botev et al. 2024, "Griffin: Mixing Gated Linear
Recurrences with Local Attention for Efficient Language Models", arXiv 2402.19427, section 2.4)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.linear import LinearCell, ring
from lifelong.envs.options import Share, Width


class RGLRU(LinearCell):
    """r, i = sigmoid(W x + b), a = exp(-8 softplus(v) r), h' = a h + sqrt(1 - a^2) (i (W_x x + b_x)).

    The gates read the cell's input, and W_x maps it to the units (in the paper a linear layer, outside). After a reset
    the input keeps its factor sqrt(1 - a^2), which the authors' code sets to 1 at the first token.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        radius: exp(-softplus(v)) is drawn from [low, high], uniform by area.
    """

    GATES: ClassVar[tuple[str, ...]] = ("recurrence", "input", "value")
    VECTORS: ClassVar[tuple[str, ...]] = ("decay",)

    def __init__(
        self, input_size: int, *, size: Width = 128, radius: tuple[Share, Share] = (0.9, 0.999), **options: Any
    ) -> None:
        super().__init__(input_size, size=size, **options)
        with torch.no_grad():  # softplus(v) = exp(decay)
            self.weight_recurrent.copy_(torch.log(torch.expm1(torch.exp(ring(size, radius, 1.0)[0])))[None])

    def coefficients(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        a = torch.exp(-8 * nn.functional.softplus(vectors[0]) * torch.sigmoid(drives[0]))
        # the slope of the root has no bound at a = 1: theirs is cut off at 1000, this one at 500
        return a, torch.sqrt(torch.clamp(1 - a * a, min=1e-6)) * (torch.sigmoid(drives[1]) * drives[2])
