"""Orthogonal weights modification (Zeng, Chen, Cui, Yu 2019, Nature Machine Intelligence, eqs. 1-4)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from lifelong.agent.strategies.projection import CovarianceProjection, Elementwise
from lifelong.envs.options import Count, Range, Steps


class OWM(CovarianceProjection):
    """Every realised update is multiplied by P = alpha (alpha I + C)^-1, with C the sum over old tasks of the mean
    second moment of a layer's inputs: the recursive least squares of the paper in closed form, which data-parallel
    workers can add up.

    The paper updates P at every batch, while the task is learned; an agent whose policy is still changing would lose
    its room before it has found the task, so it is done at boundaries here, from whole episodes of the policy that was
    learned. Nothing is cut off: a direction with second moment lambda keeps the share alpha / (alpha + lambda).

    Args:
        alpha: beside the second moments of the inputs, which are of order 1 / width and above; small protects more.
        elementwise, chunks, every: see `Projection`.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[float, Range(0.0, 1e6, above=True)] = 1e-3,
        elementwise: Elementwise = "frozen",
        chunks: Count = 16,
        every: Steps = 0,
    ) -> None:
        super().__init__(elementwise, chunks, every)
        if alpha <= 0:
            raise ValueError(f"alpha is {alpha}; it must be above 0")
        self.alpha = alpha

    def share(self, eigenvalues_n: Tensor) -> Tensor:
        return self.alpha / (self.alpha + eigenvalues_n)
