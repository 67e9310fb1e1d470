"""Adam-NSCL: updates in the approximate null space of old inputs (Wang, Li, Sun, Xu, CVPR 2021, algorithm 1)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.strategies.projection import CovarianceProjection
from lifelong.envs.options import Range


class AdamNSCL(CovarianceProjection):
    """Every realised update is projected onto the eigenvectors of C whose eigenvalue is at most `ratio` times the
    smallest; C has the second moments of a layer's inputs on all old tasks.

    The paper's projector is divided by its norm in its code, which makes the learning rate depend on the rank; that is
    not done here, and the inputs are those of all steps instead of a batch's mean.

    Args:
        ratio: a of the paper (10 or 30 there); larger leaves more room and protects less.
        options: see `Projection`.
    """

    def __init__(self, *, ratio: Annotated[float, Range(1.0, 1e9)] = 10.0, **options: Any) -> None:
        super().__init__(**options)
        if ratio < 1:
            raise ValueError(f"ratio is {ratio}; it must be at least 1")
        self.ratio = ratio

    def share(self, eigenvalues_n: Tensor, floor: float) -> Tensor:
        # what rounding leaves of a zero: without it a single exact null direction would be all the room there is
        smallest = eigenvalues_n[0].clamp(min=1e-6 * eigenvalues_n[-1])
        free = int((eigenvalues_n <= self.ratio * smallest).sum())
        free = max(free, math.ceil(len(eigenvalues_n) * floor - 1e-6))
        return (torch.arange(len(eigenvalues_n), device=eigenvalues_n.device) < free).to(eigenvalues_n)
