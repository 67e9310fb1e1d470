"""Cells whose recurrence is linear in the state, c' = a c + b with a and b from the input alone: real (`LinearCell`)
and complex, in pairs of real numbers (`ComplexCell`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import BlockCell, DiagonalCell
from lifelong.envs.options import Range


class LinearCell(DiagonalCell):
    """A diagonal cell that is linear in its state: subclasses write `coefficients` in place of `recurrence`.

    Args:
        input_size: D.
        max_retention: cap of a, what a unit keeps of its state in a step.
    """

    jacobian: ClassVar[str] = "linear_diagonal"

    def __init__(
        self,
        input_size: int,
        *,
        max_retention: Annotated[float, Range(0.0, 1.0, above=True)] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(input_size, **options)
        self.max_retention = float(max_retention)

    def coefficients(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`(a, b)` [..., P] of c' = a c + b, from the drives [..., P] (one a gate) and the weight vectors [P]."""
        raise NotImplementedError

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        a, b = self.coefficients(drives, vectors)
        if self.max_retention < 1:
            a = torch.clamp(a, max=self.max_retention)
        return a * c + b


class ComplexCell(BlockCell):
    """A cell of complex units that is linear in its state, h' = a h + b; the state is [Re h | Im h], and the Jacobian
    of a unit is the rotation and scaling [[Re a, -Im a], [Im a, Re a]]. Subclasses write `coefficients`."""

    def coefficients(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`(Re a, Im a, Re b, Im b)` [..., P] of h' = a h + b, from the drives [..., P] and the weight vectors [P]."""
        raise NotImplementedError

    def recurrence(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        real, imaginary, b_real, b_imaginary = self.coefficients(drives, vectors)
        return real * h - imaginary * c + b_real, imaginary * h + real * c + b_imaginary


def ring(size: int, radius: tuple[float, float], max_phase: float) -> tuple[Tensor, Tensor]:
    """`(v, w)` [N] of eigenvalues exp(-exp(v) + i exp(w)): uniform in the ring between two radii, angles uniform in
    [0, max_phase] (Orvieto et al. 2023, arXiv 2303.06349, lemma 3.2)."""
    low, high = (float(r) for r in radius)
    area = torch.rand(size).clamp(1e-6, 1 - 1e-6) * (high**2 - low**2) + low**2
    angle = torch.rand(size).clamp(min=1e-6) * max_phase
    return torch.log(-0.5 * torch.log(area)), torch.log(angle)
