"""WARP: the state is the weights of a small network (Nzoyem, Keshtmand, Crespo Fernandez, Tsayem, Santos-Rodriguez,
Barton & Deakin 2025, "Weight-Space Linear Recurrent Neural Networks", arXiv 2506.01153, eqs. 3-5)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import BlockCell
from lifelong.envs.options import Width


class WARP(BlockCell):
    """s' = a s + B (x - x_before), y = W_2 tanh(W_1 x + b_1) + b_2 with the weights (W_1, b_1, W_2, b_2) = w_0 + s.

    The root network has N hidden and N output units, so s has P = N (D + N + 2) numbers; a is diagonal, in the paper a
    matrix, and cut off at 1. State [s | B x]. It begins as a root network w_0 that never changes: a at 1, B at 0.

    Args:
        input_size: D.
        size: N, the number of hidden units of the root network; also the output size.
    """

    units_apart: ClassVar[bool] = False
    GATES: ClassVar[tuple[str, ...]] = ("change",)
    VECTORS: ClassVar[tuple[str, ...]] = ("decay",)

    def __init__(self, input_size: int, *, size: Width = 16, **options: Any) -> None:
        super().__init__(input_size, size=size * (input_size + size + 2), **options)
        self.output_size = self.units = size
        self.widths = [input_size * size, size, size * size, size]
        self.output_initial = nn.Parameter(torch.zeros(self.places))  # w_0
        nn.init.ones_(self.weight_recurrent)
        nn.init.zeros_(self.weight_input)
        with torch.no_grad():
            inner, _, outer, _ = self.output_initial.split(self.widths)
            inner.normal_(std=max(1, input_size) ** -0.5)
            outer.normal_(std=size**-0.5)

    def recurrence(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        return torch.clamp(vectors[0], -1.0, 1.0) * h + drives[0] - c, drives[0]

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        weights = self.output_initial + state[..., : self.places]
        inner, inner_bias, outer, outer_bias = weights.split(self.widths, -1)
        hidden = torch.tanh((x.unsqueeze(-1) * inner.unflatten(-1, (-1, self.units))).sum(-2) + inner_bias)
        return (hidden.unsqueeze(-1) * outer.unflatten(-1, (-1, self.units))).sum(-2) + outer_bias

    def elementwise_parameters(self) -> list[str]:
        return ["weight_recurrent", "output_initial"]

    def recurrent_parameters(self) -> list[str]:
        return ["weight_input", "bias", "weight_recurrent"]
