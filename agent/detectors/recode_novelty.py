"""Novelty by RECODE's memory: counts of clusters, of which a burst of novelty tells that the context is another.

Saade et al. 2024, *Unlocking the Power of Representations in Long-term Novelty-based Exploration* (ICLR; arXiv
2305.01521), section 3, algorithm 1.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.detectors.base import TINY, Chunks, Detector
from lifelong.agent.modules.novelty import Recode
from lifelong.envs.options import Range, Share, Weight


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
