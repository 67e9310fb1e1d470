"""Spectral regularisation: the largest singular value of every weight matrix stays near 1.

Lewandowski, Kumar, Schuurmans, György & Machado 2024, *Learning Continually by Spectral Regularization* (arXiv
2406.06811, section 4).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.matrices import MatrixPenalty, blocks_of
from lifelong.envs.options import Range, Weight


class Spectral(MatrixPenalty):
    """Adds strength * sum_l (sigma_max(W_l)^k - 1)^2 to the loss.

    A gradient that goes through many maps with a norm of 1 neither vanishes nor explodes, and none of the directions is
    pulled to zero as L2 would. sigma_max comes from one power iteration an update, which goes on from the one before.
    The paper's term for additive parameters is left out: those of the cell set how long a unit remembers.

    Args:
        strength: lambda.
        power: k.
        heads: actor and critic, too, as in the paper.
    """

    def __init__(
        self, *, strength: Weight = 1e-3, power: Annotated[float, Range(0.1, 16.0)] = 2.0, heads: bool = True
    ) -> None:
        super().__init__(strength, heads)
        self.power = power

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        generator = torch.Generator().manual_seed(seed)
        #: the left singular vectors [G, m]
        self.vectors = {
            name: torch.randn(blocks_of(p, count).shape[:2], generator=generator).to(p)
            for name, (p, count) in self.matrices.items()
        }
        self.norms: dict[str, Tensor] = {}
        for _ in range(10):
            for name, (p, count) in self.matrices.items():
                self.norm(name, blocks_of(p.detach(), count))

    def norm(self, name: str, weight_Gmn: Tensor) -> Tensor:
        """sigma_max [G], after one more power iteration."""
        with torch.no_grad():
            v_Gn = torch.nn.functional.normalize(torch.einsum("gm,gmn->gn", self.vectors[name], weight_Gmn), dim=1)
            u_Gm = torch.nn.functional.normalize(torch.einsum("gmn,gn->gm", weight_Gmn, v_Gn), dim=1)
            alive_G1 = u_Gm.any(1, keepdim=True)  # a matrix of zeros has no direction; later it may have one
            self.vectors[name] = torch.where(alive_G1, u_Gm, self.vectors[name])
        norm_G = torch.einsum("gm,gmn,gn->g", u_Gm, weight_Gmn, v_Gn)
        self.norms[name] = norm_G.detach()
        return norm_G

    def penalty_of(self, name: str, weight_Gmn: Tensor) -> Tensor:
        norm_G = self.norm(name, weight_Gmn)
        return (norm_G.clamp(min=1e-12) ** self.power - 1).square()

    def report(self) -> dict[str, float]:
        """Beside the penalty the largest norm of every parameter's maps."""
        return {**super().report(), **{f"norm/{name}": float(norm.max()) for name, norm in self.norms.items()}}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "vectors": self.vectors, "norms": self.norms}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.vectors = {name: grown(u, self.vectors[name]) for name, u in saved["vectors"].items()}
        self.norms = dict(saved["norms"])
