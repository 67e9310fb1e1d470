"""Recurrent trace unit: a complex unit that turns and decays, its gates constant (Elelimy, White, Bowling & White 2024,
"Real-Time Recurrent Learning using Trace Units in Reinforcement Learning", arXiv 2409.01449)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.cells.linear import ComplexCell, ring
from lifelong.envs.options import Range, Share, Width

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda h: h,
}


class RTU(ComplexCell):
    """r = exp(-exp(v)), h' = r e^{i exp(w)} h + sqrt(1 - r^2) (W_1 x + b_1 + i (W_2 x + b_2)),
    y = [f(Re h'), f(Im h')]. The nonlinear form remembers f(h') in place of h'. State [Re h | Im h], output of 2N
    numbers.

    Args:
        input_size: D.
        size: N, the number of complex units; the output has 2N numbers.
        form: linear (f after the recurrence) or nonlinear (f inside it).
        activation: f.
        radius: r is drawn so that the eigenvalues r e^{i w} are uniform in the ring [low, high].
        max_phase: the angles are drawn uniformly from [0, max_phase].
        max_radius: cap of r, without which a learned r tends to 1 until the carry overflows.
    """

    OUTPUTS: ClassVar[int] = 2
    GATES: ClassVar[tuple[str, ...]] = ("real", "imaginary")
    VECTORS: ClassVar[tuple[str, ...]] = ("decay", "angle")

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        form: Literal["linear", "nonlinear"] = "linear",
        activation: Literal["tanh", "relu", "identity"] = "tanh",
        radius: tuple[Share, Share] = (0.0, 1.0),
        max_phase: Annotated[float, Range(0.0, 6.2832, above=True)] = 6.28,
        max_radius: Annotated[float, Range(0.0, 1.0, above=True)] = 0.999,
        **options: Any,
    ) -> None:
        super().__init__(input_size, size=size, **options)
        self.nonlinear, self.max_radius = form == "nonlinear", float(max_radius)
        self.activation = ACTIVATIONS[activation]
        with torch.no_grad():
            decay, angle = ring(size, radius, max_phase)
            self.weight_recurrent.copy_(torch.stack([decay, angle]))

    def coefficients(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r = torch.clamp(torch.exp(-torch.exp(vectors[0])), max=self.max_radius)
        angle, scale = torch.exp(vectors[1]), torch.sqrt(1 - r * r)
        return r * torch.cos(angle), r * torch.sin(angle), scale * drives[0], scale * drives[1]

    def recurrence(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        h, c = super().recurrence(drives, vectors, h, c)
        return (self.activation(h), self.activation(c)) if self.nonlinear else (h, c)

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        return state if self.nonlinear else self.activation(state)
