"""Nearest mean: every context is the mean of what it looked like, and a chunk belongs to the nearest one.

The classifier of iCaRL (Rebuffi et al. 2017, arXiv 1611.07725, section 3.1) and of Janson et al. 2022 (arXiv
2210.04428) over contexts that nobody has named.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.detectors.base import TINY, Chunks, Detector
from lifelong.envs.options import Range


class NearestMean(Detector):
    """The distance of a chunk to a context is the root mean square, over the dimensions of the signal, of the
    difference of their means divided by the standard deviation of steps within a context. If the context in training
    is farther than `radius` for `patience` chunks in a row, there is an alarm: the context is the nearest known one
    within `radius`, or else a new one. So a context that comes back is recognised.

    Args:
        radius: standard deviations of single steps.
        patience: chunks.
        memory: chunks that a mean goes back; it is that of all chunks of its context until there are so many.
        contexts: kept at most; beyond, a new one takes the place of the one that was seen last longest ago.
        options: see `Detector`.
    """

    def __init__(
        self,
        *,
        radius: Annotated[float, Range(0.0, 1e6, above=True)] = 0.5,
        patience: Chunks = 2,
        memory: Annotated[int, Range(1, 10**6)] = 20,
        contexts: Annotated[int, Range(2, 10_000)] = 100,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.radius, self.patience, self.memory, self.contexts = radius, patience, memory, contexts
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []  # of single steps
        self.counts: list[int] = []
        self.stamps: list[int] = []  # the chunk at which each was seen last
        self.chunks = 0
        self.now = 0
        self.strange, self.distance = 0, 0.0

    def restart(self) -> None:
        self.strange = 0

    def distances(self, mean_D: Tensor) -> Tensor:
        """To every context, [C]."""
        # contexts that hardly vary have the spread of all of them, so a dimension that is padded here tells them apart
        variance_D = torch.stack(self.variances).mean(0)
        gap_CD = (torch.stack(self.means) - mean_D) / (variance_D.sqrt() + TINY)
        return gap_CD.square().mean(1).sqrt()

    def update(self, values_TBD: Tensor) -> int:
        mean_D, variance_D = self.mean(values_TBD)
        self.chunks += 1
        if not self.means:
            self._begin(mean_D, variance_D)
            return 0
        distance_C = self.distances(mean_D)
        self.distance = float(distance_C[self.now])
        if self.distance <= self.radius:
            self.strange = 0
            self._follow(mean_D, variance_D)
            return 0
        self.strange += 1
        if self.strange < self.patience or self.age <= self.gap:
            return 0
        nearest = int(distance_C.argmin())
        if float(distance_C[nearest]) <= self.radius:
            self.now = nearest
            self._follow(mean_D, variance_D)
        else:
            self._begin(mean_D, variance_D)
        return self.strange

    def _follow(self, mean_D: Tensor, variance_D: Tensor) -> None:
        now = self.now
        self.counts[now] += 1
        self.stamps[now] = self.chunks
        rate = 1.0 / min(self.counts[now], self.memory)
        self.means[now] = torch.lerp(self.means[now], mean_D, rate)
        self.variances[now] = torch.lerp(self.variances[now], variance_D, rate)

    def _begin(self, mean_D: Tensor, variance_D: Tensor) -> None:
        """A new context, behind the others or in the place of the one that was seen last longest ago."""
        known = len(self.means)
        self.now = known if known < self.contexts else self.stamps.index(min(self.stamps))
        for kept, value in zip(
            (self.means, self.variances, self.counts, self.stamps), (mean_D, variance_D, 1, self.chunks), strict=True
        ):
            kept[self.now : self.now + 1] = [value]  # type: ignore[index, call-overload]

    def report(self) -> dict[str, float]:
        return {"distance": self.distance, "contexts": float(len(self.means)), "context": float(self.now)}

    def state_dict(self) -> dict[str, Any]:
        held = {"means": self.means, "variances": self.variances, "counts": self.counts, "stamps": self.stamps}
        numbers = {"chunks": self.chunks, "now": self.now, "strange": self.strange, "distance": self.distance}
        return {**super().state_dict(), **held, **numbers}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.means = [mean.to(self.device) for mean in saved["means"]]
        self.variances = [variance.to(self.device) for variance in saved["variances"]]
        self.counts, self.stamps = list(saved["counts"]), list(saved["stamps"])
        self.chunks, self.now, self.strange, self.distance = (
            saved[name] for name in ("chunks", "now", "strange", "distance")
        )
