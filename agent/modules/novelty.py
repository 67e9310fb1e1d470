"""RECODE's memory of what was seen: clusters and their counts, which say how new an observation is.

Saade et al. 2024, *Unlocking the Power of Representations in Long-term Novelty-based Exploration* (ICLR; arXiv
2305.01521), section 3, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: of a distance that is none
TINY = 1e-8


class Recode:
    """Clusters f_l with counts c_l, which stand for all that was seen.

    The novelty of an embedding e is 1 / (sqrt(N) + 0.01), N = sum_l (1 + c_l) K(f_l, e), with K = eps / (eps + |e -
    f|^2 / d^2) within d and else 0. Every embedding then moves d^2 towards the mean squared distance to its
    `neighbours` nearest clusters, decays all counts, and either joins the nearest cluster or, if that is far, may take
    the place of a rare one, whose count goes to its neighbour. So the sum of all counts c becomes gamma c + 1. While
    there is room, every embedding that is far from all clusters becomes one.

    Args:
        size: clusters.
        dimensions: of embeddings.
        decay: gamma of the counts, once an embedding.
        rate: tau of d^2.
        far: kappa; in units of d^2.
        insert: eta, probability that an embedding far from all clusters becomes one.
        neighbours: k.
        eps: of the kernel.
        generator: of the draws, on the host.
    """

    def __init__(
        self,
        size: int,
        dimensions: int,
        decay: float,
        rate: float,
        far: float,
        insert: float,
        neighbours: int,
        eps: float,
        generator: torch.Generator,
    ) -> None:
        self.decay, self.rate, self.far, self.insert = decay, rate, far, insert
        self.neighbours, self.eps, self.generator = neighbours, eps, generator
        self.atoms = torch.zeros(size, dimensions, dtype=torch.float64)
        self.counts = torch.zeros(size, dtype=torch.float64)
        self.used = 0
        self.scale = 0.0  # d^2

    def novelty(self, e_MD: Tensor) -> Tensor:
        """Of every embedding beside what is known, [M]."""
        near = torch.cdist(e_MD, self.atoms[: self.used]).square()
        scale = max(self.scale, TINY**2)
        kernel = torch.where(near < scale, self.eps / (self.eps + near / scale), 0.0)
        return 1.0 / ((kernel * (1 + self.counts[: self.used])).sum(1).sqrt() + 0.01)

    def add(self, e_D: Tensor) -> None:
        """Take one embedding into account."""
        size, used = len(self.atoms), self.used
        self.counts *= self.decay
        near = (self.atoms[:used] - e_D).square().sum(1)
        if used:
            nearest = float(near.topk(min(self.neighbours, used), largest=False).values.mean())
            self.scale += (self.rate if used >= self.neighbours else 1.0 / (used + 1)) * (nearest - self.scale)
        if used < size and (not used or float(near.min()) > self.far * self.scale):
            self.atoms[used], self.counts[used], self.used = e_D, 1.0, used + 1
            return
        index = int(near.argmin())
        draw = float(torch.rand((), generator=self.generator))
        if float(near[index]) > self.far * self.scale and draw < self.insert:
            rare = self.counts.clamp(min=1e-12).pow(-2)
            removed = int(torch.multinomial(rare / rare.max(), 1, generator=self.generator))
            others = (self.atoms - self.atoms[removed]).square().sum(1)
            others[removed] = float("inf")
            heir = int(others.argmin())
            self.counts[heir] += self.counts[removed]
            self.atoms[removed], self.counts[removed] = e_D, 1.0
            return
        count = self.counts[index]
        self.atoms[index] = (count * self.atoms[index] + e_D) / (count + 1)
        self.counts[index] = count + 1

    def state_dict(self) -> dict[str, Any]:
        """Clusters, counts and the scale."""
        return {"atoms": self.atoms, "counts": self.counts, "used": self.used, "scale": self.scale}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.atoms, self.counts = saved["atoms"].cpu().clone(), saved["counts"].cpu().clone()
        self.used, self.scale = saved["used"], saved["scale"]
