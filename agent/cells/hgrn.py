"""HGRN: a hierarchically gated recurrent network, complex (Qin, Yang & Zhong 2023, "Hierarchically Gated Recurrent
Neural Network for Sequence Modeling", arXiv 2311.04823, section 3.2)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.linear import ComplexCell
from lifelong.envs.options import Range, Width


class HGRN(ComplexCell):
    """l = g + (1-g) sigmoid(W x + b), h' = l e^{i v} h + (1-l) (silu(W_r x + b_r) + i silu(W_i x + b_i)),
    y = [Re h', Im h'] silu(W_o x + b_o). State [Re h | Im h], output of 2N numbers; without the paper's normalisation
    and output matrix, which are what follows the cell (`stack`, or the heads).

    Args:
        input_size: D.
        size: N, the number of complex units; the output has 2N numbers.
        lower_bound: g, the least that is kept; higher layers of a stack have more (section 3.2.1).
    """

    OUTPUTS: ClassVar[int] = 2
    GATES: ClassVar[tuple[str, ...]] = ("forget", "real", "imaginary")
    VECTORS: ClassVar[tuple[str, ...]] = ("angle",)
    READS: ClassVar[tuple[str, ...]] = ("input",)

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        lower_bound: Annotated[float, Range(0.0, 0.9999)] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(input_size, size=size, **options)
        self.lower_bound = float(lower_bound)
        with torch.no_grad():
            self.weight_recurrent.copy_(10000 ** (-torch.arange(size) / size))

    def coefficients(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kept = self.lower_bound + (1 - self.lower_bound) * torch.sigmoid(drives[0])
        real, imaginary = (u * torch.sigmoid(u) for u in drives[1:])
        return kept * torch.cos(vectors[0]), kept * torch.sin(vectors[0]), (1 - kept) * real, (1 - kept) * imaginary

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        return state * nn.functional.silu(self.output_drive(x, state))
