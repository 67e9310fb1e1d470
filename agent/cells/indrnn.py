"""IndRNN: a simple recurrent network whose units hear only themselves (Li, Li, Cook, Zhu & Gao 2018, "Independently
Recurrent Neural Network", arXiv 1803.04831, eq. 4)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.cells.base import DiagonalCell
from lifelong.envs.options import Range, Width


class IndRNN(DiagonalCell):
    """h' = f(W x + v h + b). |v| is cut off at a bound, as in the paper; v is drawn from [0, bound].

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        activation: f.
        bound: of |v|; 1 keeps a gradient from growing, 2^(1/T) lets it double in T steps.
    """

    GATES: ClassVar[tuple[str, ...]] = ("candidate",)
    VECTORS: ClassVar[tuple[str, ...]] = ("recurrent",)

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        activation: Literal["relu", "tanh"] = "relu",
        bound: Annotated[float, Range(0.0, 2.0, above=True)] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(input_size, size=size, **options)
        self.activation, self.bound = {"relu": torch.relu, "tanh": torch.tanh}[activation], float(bound)
        with torch.no_grad():
            self.weight_recurrent.uniform_(0.0, self.bound)

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        return self.activation(drives[0] + torch.clamp(vectors[0], -self.bound, self.bound) * c)
