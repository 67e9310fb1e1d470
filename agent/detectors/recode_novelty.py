"""Novelty by RECODE's memory: counts of clusters, of which a burst of novelty tells that the context is another.

Saade et al. 2024, *Unlocking the Power of Representations in Long-term Novelty-based Exploration* (ICLR; arXiv
2305.01521), section 3, algorithm 1.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.detectors.base import TINY, Chunks, Detector
from lifelong.envs.options import Range, Share, Weight


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


class RecodeNovelty(Detector):
    """The novelty of a chunk is the mean over its rows; an alarm is one that exceeds the mean of the last `memory`
    chunks by `threshold` of their standard deviations and by half of itself, `patience` times in a row. The memory is
    not cleared at a boundary: a context that comes back soon is no news, so what is found is that a context is *new*.

    Every number of an embedding is divided by its standard deviation so far.

    Args:
        threshold: standard deviations.
        patience: chunks.
        memory: chunks of the reference; there is no alarm before it has so many.
        clusters: of the memory.
        decay: of the counts, an embedding.
        rate: of the squared scale d^2, an embedding.
        far: squared distance over d^2 from which an embedding may become a cluster.
        insert: probability that it does, once all clusters are in use.
        neighbours: nearest clusters that the scale is made of.
        options: see `Detector`; `rows` is 16, as they are gone through one by one.
    """

    def __init__(
        self,
        *,
        rows: Annotated[int, Range(1, 10**6)] = 16,
        threshold: Weight = 5.0,
        patience: Chunks = 2,
        memory: Annotated[int, Range(2, 1000)] = 20,
        clusters: Annotated[int, Range(2, 100_000)] = 256,
        decay: Annotated[float, Range(0.0, 1.0, above=True)] = 0.999,
        rate: Share = 0.01,
        far: Weight = 0.2,
        insert: Share = 0.05,
        neighbours: Annotated[int, Range(1, 1000)] = 10,
        **options: Any,
    ) -> None:
        super().__init__(rows=rows, **options)
        self.threshold, self.patience, self.memory = threshold, patience, memory
        self.clusters, self.constants = clusters, (decay, rate, far, insert, neighbours, 1e-3)
        self.recode: Recode | None = None
        self.moments: Tensor | None = None  # count, sum and sum of squares of the rows
        self.restart()

    def restart(self) -> None:
        self.last: list[float] = []  # novelty of the last chunks
        self.novel, self.found = 0, 0.0

    def update(self, values_TBD: Tensor) -> int:
        rows_MD = self.sample(values_TBD).flatten(0, 1).cpu()
        if self.moments is None or self.recode is None:
            self.moments = torch.zeros(3, rows_MD.shape[1], dtype=torch.float64)
            self.recode = Recode(self.clusters, rows_MD.shape[1], *self.constants, self.generator)
        first = not self.recode.used
        self.moments += torch.stack([torch.ones_like(rows_MD), rows_MD, rows_MD.square()]).sum(1)
        count, mean_D = self.moments[0], self.moments[1] / self.moments[0]
        deviation_D = (self.moments[2] / count - mean_D.square()).clamp(min=0.0).sqrt()
        e_MD = rows_MD / (deviation_D + TINY)
        self.found = 0.0 if first else float(self.recode.novelty(e_MD).mean())
        for e_D in e_MD:
            self.recode.add(e_D)
        if len(self.last) == self.memory:
            known = torch.tensor(self.last)
            limit = max(float(known.mean() + self.threshold * known.std()), 1.5 * float(known.mean()))
            if self.found > limit:
                self.novel += 1
                return self.novel if self.novel >= self.patience else 0
        self.novel = 0
        self.last = [*self.last, self.found][-self.memory :]
        return 0

    def report(self) -> dict[str, float]:
        return {"novelty": self.found}

    def state_dict(self) -> dict[str, Any]:
        held = {"last": self.last, "novel": self.novel, "found": self.found, "moments": self.moments}
        recode = None if self.recode is None else self.recode.state_dict()
        return {**super().state_dict(), **held, "recode": recode, "generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.last, self.novel, self.found = list(saved["last"]), saved["novel"], saved["found"]
        self.generator.set_state(saved["generator"].cpu())
        self.moments = None if saved["moments"] is None else saved["moments"].cpu().clone()
        if saved["recode"] is not None:
            self.recode = Recode(self.clusters, saved["recode"]["atoms"].shape[1], *self.constants, self.generator)
            self.recode.load_state_dict(saved["recode"])
