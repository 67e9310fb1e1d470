"""Linear recurrent unit (Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu & De 2023, "Resurrecting Recurrent Neural
Networks for Long Sequences", arXiv 2303.06349, section 3; exact online gradients: Zucchet et al. 2023, arXiv
2305.15947)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.linear import ComplexCell, ring
from lifelong.envs.options import Range, Share, Width


class LRU(ComplexCell):
    """h' = exp(-exp(v) + i exp(w)) h + exp(g) (B x + b), y = Re(C h') + D x + d. B and C are complex; the state is
    [Re h | Im h]. The output is linear: put an activation behind it (`stack`).

    Args:
        input_size: D.
        size: N, the number of complex units; also the output size.
        radius: the eigenvalues are drawn uniformly in the ring [low, high].
        max_phase: their angles are drawn uniformly from [0, max_phase].
        max_radius: cap of the radius.
    """

    GATES: ClassVar[tuple[str, ...]] = ("real", "imaginary")
    VECTORS: ClassVar[tuple[str, ...]] = ("decay", "angle", "scale")
    READS: ClassVar[tuple[str, ...]] = ("input", "state")

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        radius: tuple[Share, Share] = (0.0, 1.0),
        max_phase: Annotated[float, Range(0.0, 6.2832, above=True)] = 6.28,
        max_radius: Annotated[float, Range(0.0, 1.0, above=True)] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(input_size, size=size, **options)
        self.max_radius = float(max_radius)
        nn.init.normal_(self.weight_input, std=(2 * max(1, input_size)) ** -0.5)
        nn.init.normal_(self.get_parameter("output_state"), std=size**-0.5)
        with torch.no_grad():
            decay, angle = ring(size, radius, max_phase)
            scale = torch.log(torch.sqrt(1 - torch.exp(-2 * torch.exp(decay))))
            self.weight_recurrent.copy_(torch.stack([decay, angle, scale]))

    def coefficients(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r, angle, scale = torch.exp(-torch.exp(vectors[0])), torch.exp(vectors[1]), torch.exp(vectors[2])
        if self.max_radius < 1:
            r = torch.clamp(r, max=self.max_radius)
        return r * torch.cos(angle), r * torch.sin(angle), scale * drives[0], scale * drives[1]

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        return self.output_drive(x, state)
