"""A two-sample test between the last chunks and those before them, by permutations within copies.

Energy distance: Szekely & Rizzo 2004, *Testing for equal distributions in high dimension*, InterStat 5, section 2;
Kolmogorov-Smirnov: the largest distance between two empirical distribution functions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lifelong.agent.detectors.base import TINY, Detector
from lifelong.agent.parallel import ALONE, Workers
from lifelong.envs.options import Range, Share


def energy(x_ND: Tensor, y_ND: Tensor) -> tuple[Tensor, Tensor]:
    """What the energy statistic is made of: `(distances [2N, 2N], 2 E|X - Y|)` of two samples of N rows.

    With labels s (+1 for x, -1 for y) E = 2 E|X-Y| - E|X-X'| - E|Y-Y'| is -s^T distances s / N^2.
    """
    z = torch.cat([x_ND, y_ND])
    distances = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    n = len(x_ND)
    return distances, 2 * distances[:n, n:].mean()


def ks(x_ND: Tensor, y_ND: Tensor) -> tuple[Tensor, Tensor]:
    """What the KS statistic is made of: `(steps [D, 2N, 2N], 1)`: row i of steps[d] says which rows of both samples
    are at most the i-th smallest value of dimension d, so with labels s it is max |steps s| / N."""
    z = torch.cat([x_ND, y_ND])
    order = z.sort(0).values
    return (z.T.unsqueeze(1) <= order.T.unsqueeze(2)).to(z.dtype), z.new_ones(())


def statistics(kind: str, made_of: Tensor, labels_P2N: Tensor) -> Tensor:
    """The statistic for every row of labels, [P]."""
    n = labels_P2N.shape[1] // 2
    if kind == "energy":
        return -((labels_P2N @ made_of) * labels_P2N).sum(1) / n**2
    return torch.stack([(part @ labels_P2N.T).abs().amax(0) for part in made_of]).amax(0) / n


class DistributionShift(Detector):
    """Compares the last `window` chunks with the `window` before. An alarm needs a difference that is large (the
    statistic over its largest value, 0 to 1, is at least `size`) and significant (p at most `alpha`).

    The steps of a copy hang together, so they are not permuted freely: a permutation exchanges, for half of the copies
    at random, the two windows as a whole. Copies are independent, so p is exact for any dependence in time, as long as
    the two windows of a copy may change places. The windows lie side by side: what learning moves in their time is
    small. A change is thought to lie back a window at most.

    Args:
        window: chunks.
        size: of the difference at least.
        alpha: level of the test of one chunk.
        permutations: of the test; p is at least 1 / (1 + permutations).
        test: `energy` distance of all dimensions, each divided by its standard deviation; `ks`: of each dimension, the
            largest.
        options: see `Detector`.
    """

    def __init__(
        self,
        *,
        window: Annotated[int, Range(1, 256)] = 4,
        size: Share = 0.1,
        alpha: Annotated[float, Range(0.0, 1.0, above=True)] = 0.001,
        permutations: Annotated[int, Range(1, 100_000)] = 1000,
        test: Literal["energy", "ks"] = "energy",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.signal == "loss":
            raise ValueError("signal is loss, which has one number a chunk and no distribution; watch value or reward")
        self.window, self.size, self.alpha = window, size, alpha
        self.permutations, self.test = permutations, test
        if alpha * (permutations + 1) < 1:
            raise ValueError(f"permutations is {permutations}; p cannot reach alpha {alpha:g} with so few")
        self.restart()

    def setup(self, seed: int, copies: int, device: torch.device, workers: Workers = ALONE) -> None:
        super().setup(seed, copies, device, workers)
        if 0.5**copies > self.alpha:
            raise ValueError(f"{copies} copies cannot make p as small as alpha {self.alpha:g}; raise rollout.copies")

    def restart(self) -> None:
        self.last: list[Tensor] = []  # samples [R, copies, D] of the last chunks, oldest first
        self.difference, self.p = 0.0, 1.0

    def update(self, values_TBD: Tensor) -> int:
        self.last.append(self.sample(values_TBD))
        if len(self.last) < 2 * self.window:
            return 0
        self.last = self.last[-2 * self.window :]
        before, now = (torch.cat(part).transpose(0, 1) for part in (self.last[: self.window], self.last[self.window :]))
        self.difference, self.p = self.compare(before, now)
        return self.window if self.difference >= self.size and self.p <= self.alpha else 0

    def compare(self, before_BRD: Tensor, now_BRD: Tensor) -> tuple[float, float]:
        """The difference between two windows of B copies, 0 to 1, and its p, which is 1 where that is too small."""
        x, y = before_BRD.flatten(0, 1), now_BRD.flatten(0, 1)
        deviation = torch.cat([x, y]).std(0)
        x, y = (z / (deviation + TINY) for z in (x, y))
        made_of, most = (energy if self.test == "energy" else ks)(x, y)
        copies, each = before_BRD.shape[:2]
        label = torch.ones(2, copies * each, dtype=x.dtype, device=x.device)
        label[1] = -1.0
        found = statistics(self.test, made_of, label.view(1, -1))
        difference = float(found / most.clamp(min=TINY))
        if difference < self.size:
            return difference, 1.0
        flip = torch.rand(self.permutations, 1, copies, 1, generator=self.generator) < 0.5
        sign = torch.where(flip, -1.0, 1.0).to(x).expand(-1, 2, -1, each)
        permuted = statistics(self.test, made_of, (sign * label.view(1, 2, copies, each)).flatten(1))
        as_large = permuted >= found * (1 - 1e-9)
        return difference, (1.0 + float(as_large.sum())) / (1.0 + self.permutations)

    def report(self) -> dict[str, float]:
        return {"difference": self.difference, "p": self.p}

    def state_dict(self) -> dict[str, Any]:
        held = {"last": self.last, "difference": self.difference, "p": self.p}
        return {**super().state_dict(), **held, "generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.last = [rows.to(self.device) for rows in saved["last"]]
        self.difference, self.p = saved["difference"], saved["p"]
        self.generator.set_state(saved["generator"].cpu())
