"""Regions of what was ever observed: a few centres that every sequence is near to one of, kept while they come.

Charikar, Chekuri, Feder & Motwani 1997, *Incremental clustering and dynamic information retrieval* (STOC), section 3.1,
the doubling algorithm: with at most k centres no point is farther from its own than eight times what the best k centres
of all points would leave.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifelong.replay.chunk import Chunk

#: numbers of an observation that are looked at; of longer ones so many random directions
DIRECTIONS = 64
#: whole numbers are codes; so many have a direction of their own
CODES = 1024


def described(chunk: Chunk) -> Tensor:
    """Mean and standard deviation over time of what every sequence observes, float64 [n, D] on the host.

    Observations of more than `DIRECTIONS` numbers by random projections, which keep distances (Johnson & Lindenstrauss
    1984). An observation that is a whole number is a code: a random direction, not a size.
    """
    obs_TN = chunk.obs.cpu()
    generator = torch.Generator().manual_seed(0)  # always the same
    if obs_TN.dim() == 2 and not obs_TN.is_floating_point():
        table = torch.randn(CODES, 16, generator=generator, dtype=torch.float64)
        seen_TND = table[obs_TN.long() % CODES]
    else:
        seen_TND = obs_TN.unsqueeze(-1).flatten(2).double()
        width = seen_TND.shape[-1]
        if width > DIRECTIONS:
            directions = torch.randn(width, DIRECTIONS, generator=generator, dtype=torch.float64)
            seen_TND = seen_TND @ (directions / DIRECTIONS**0.5)
    return torch.cat([seen_TND.mean(0), seen_TND.std(0, correction=0)], -1)


class Regions:
    """At most `most` centres; a point that is farther than twice the threshold from all of them becomes one, and where
    there are too many the threshold doubles and centres that are nearer to each other become one.

    A region's number stands for ever; `now` says what became of it.

    Args:
        most: k.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"regions is {most}; it must be at least 1")
        self.most, self.threshold = most, 0.0
        self.centres = torch.zeros(0, 0, dtype=torch.float64)
        #: number of the region of every centre
        self.names = torch.zeros(0, dtype=torch.int64)
        #: what every region that there ever was is now
        self.became = torch.zeros(0, dtype=torch.int64)

    def add(self, points_ND: Tensor) -> Tensor:
        """Take points into account, one after the other: the regions [N] (int64) that they lie in."""
        found = torch.empty(len(points_ND), dtype=torch.int64)
        for index, point in enumerate(points_ND):
            far = (self.centres - point).norm(dim=1) if len(self.names) else torch.empty(0)
            nearest = int(far.argmin()) if len(far) else -1
            if nearest >= 0 and float(far[nearest]) <= 2 * self.threshold:
                found[index] = self.names[nearest]
                continue
            new = torch.tensor([len(self.became)])
            self.became = torch.cat([self.became, new])
            self.names = torch.cat([self.names, new])
            self.centres = torch.cat([self.centres.view(-1, len(point)), point.unsqueeze(0)])
            found[index] = new
            while len(self.names) > self.most:
                self._double()
        return self.now(found)

    def now(self, regions: Tensor) -> Tensor:
        """What regions are by now; what is negative stays."""
        if not len(self.became):
            return regions
        return torch.where(regions >= 0, self.became[regions.clamp(min=0)], regions)

    def _double(self) -> None:
        """Raise the threshold, and make one of centres that are not farther than it from each other."""
        far = torch.cdist(self.centres, self.centres)
        if self.threshold:
            self.threshold *= 2
        else:
            self.threshold = float(far[~torch.eye(len(far), dtype=torch.bool)].min())
        kept: list[int] = []
        for index in range(len(far)):
            near = [other for other in kept if float(far[index, other]) <= self.threshold]
            if near:
                self.became[self.became == self.names[index]] = self.names[near[0]]
            else:
                kept.append(index)
        self.centres, self.names = self.centres[kept], self.names[kept]

    def state_dict(self) -> dict[str, Any]:
        """Centres, names and the threshold."""
        held = {"centres": self.centres, "names": self.names, "became": self.became}
        return {**held, "threshold": self.threshold}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; where fewer regions are allowed now, some become one."""
        self.centres, self.names, self.became = (saved[name].clone() for name in ("centres", "names", "became"))
        self.threshold = saved["threshold"]
        while len(self.names) > self.most:
            self._double()
