"""GPM: gradient projection memory, applied to the realised update (Saha, Garg, Roy, ICLR 2021, arXiv 2103.09762).

After a task the leading directions of every layer's presynaptic vectors are stored in a basis M. From then on a weight
matrix W only moves in the complement: dW <- dW - dW M M^T, so what W says to any stored input stays the same. The step
*after* the optimiser is projected: Adam would rotate a projected gradient back into the protected space.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.projection import BasisProjection
from lifelong.envs.options import Range, Share


def append_basis(basis_nk: Tensor, covariance_nn: Tensor, threshold: float, most: int | None = None) -> Tensor:
    """Extend an orthonormal basis until it holds `threshold` of the energy of the data (Saha et al. 2021, eqs. 8-9).

    Args:
        basis_nk: orthonormal columns so far (k may be 0).
        covariance_nn: uncentred second moment of the presynaptic vectors, sum x x^T.
        threshold: share of the energy trace(covariance) that the basis must hold.
        most: columns that it may have in the end; by default n.

    Returns:
        The basis with the fewest leading directions of the residual appended.
    """
    covariance = covariance_nn.double()
    basis = basis_nk.double()
    total = covariance.trace()
    residual = covariance - basis @ (basis.T @ covariance)
    residual = residual - (residual @ basis) @ basis.T
    energy, directions = torch.linalg.eigh(0.5 * (residual + residual.T))
    energy, directions = energy.flip(0).clamp(min=0.0), directions.flip(1)
    held = total - energy.sum() + torch.cat([energy.new_zeros(1), energy.cumsum(0)])
    room = (covariance.shape[0] if most is None else most) - basis.shape[1]
    count = max(0, min(int((held < threshold * total).sum()), room))
    new = directions[:, :count]
    new = new - basis @ (basis.T @ new)
    both, _ = torch.linalg.qr(torch.cat([basis, new], 1))
    return both.to(basis_nk.dtype)


class GPM(BasisProjection):
    """Projects every realised update onto the complement of the old tasks' presynaptic subspaces.

    Args:
        threshold: share of the energy of the presynaptic vectors that is protected.
        observation_threshold: the same of layers that read the observation, which the paper protects less (0.95 beside
            0.99 on permuted images); 0: the same share.
        options: see `Projection`.
    """

    def __init__(
        self,
        *,
        threshold: Annotated[float, Range(0.0, 1.0, above=True)] = 0.99,
        observation_threshold: Share = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not (0 < threshold <= 1 and 0 <= observation_threshold <= 1):
            raise ValueError(
                f"threshold and observation_threshold are {threshold} and {observation_threshold}; they must lie in "
                "(0, 1] and [0, 1]"
            )
        self.threshold, self.observation_threshold = threshold, observation_threshold or threshold

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.of_observation = self.taps.of_observation()

    def threshold_of(self, tap: str) -> float:
        """Share of the energy of a layer's vectors that is protected."""
        return self.observation_threshold if tap in self.of_observation else self.threshold

    def protect(self, tap: str, moment_nn: Tensor, count: int) -> Tensor:
        width = len(moment_nn)
        return append_basis(self.basis(tap, width), moment_nn, self.threshold_of(tap), self.most(tap, width))
