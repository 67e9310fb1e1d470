"""CUSUM: the sum of what a mean deviates from its reference, as long as it stays on one side.

Page 1954, *Continuous inspection schemes*, Biometrika 41, with a reference that is estimated and follows slowly.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lifelong.agent.detectors.base import TINY, Detector
from lifelong.envs.options import Range, Weight


def page(sums: Tensor, z: Tensor, drift: float) -> Tensor:
    """One step of Page's recursion on both sides: [S+, S-] <- max(0, [S+, S-] + [z, -z] - drift), sums [2, ...]."""
    return (sums + torch.stack([z, -z]) - drift).clamp(min=0.0)


class CUSUM(Detector):
    """z_t = (x_t - m) / s of the chunk's mean x_t; S+ <- max(0, S+ + z - drift), S- <- max(0, S- - z - drift); an alarm
    as soon as one of them, in any dimension of the signal, exceeds `threshold`.

    Reference m and s are mean and standard deviation of x over the first `warm_up` chunks after a boundary, and then
    exponential means over `memory` chunks: a policy that learns moves what it sees, without a boundary. If x moves
    steadily, m lags by as much as s comes to, so z is about 1, and a drift above 1 does not sum it up. s is at least
    what it would be if the steps of a chunk were independent. The change is thought to have begun where S was last 0.

    Args:
        drift: k, standard deviations that are not counted.
        threshold: h.
        side: whether a rise, a fall or both give an alarm.
        warm_up: chunks that a reference is first learned from.
        memory: chunks that it goes back; 0: it stays what it was after the warm-up.
        options: see `Detector`.
    """

    def __init__(
        self,
        *,
        drift: Weight = 2.0,
        threshold: Annotated[float, Range(0.0, 1e9, above=True)] = 10.0,
        side: Literal["both", "rise", "fall"] = "both",
        warm_up: Annotated[int, Range(2, 10_000)] = 20,
        memory: Annotated[int, Range(0, 10_000)] = 20,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.drift, self.threshold, self.side = drift, threshold, side
        self.warm_up, self.memory = warm_up, memory
        self.restart()

    def restart(self) -> None:
        self.seen = 0
        self.worst = 0.0
        #: of the means of chunks: their mean and variance; of the steps in a chunk: their variance
        self.reference: dict[str, Tensor] = {}

    def update(self, values_TBD: Tensor) -> int:
        x_D, spread_D = self.mean(values_TBD)
        steps = values_TBD.shape[0] * values_TBD.shape[1] * self.workers.count
        self.seen += 1
        if self.seen == 1:
            zero = torch.zeros_like(x_D)
            sums = torch.zeros(2, len(x_D), dtype=x_D.dtype, device=x_D.device)
            self.reference = {"mean": x_D, "variance": zero, "spread": spread_D, "sums": sums, "since": sums.clone()}
            return 0
        kept = self.reference
        if self.seen <= self.warm_up:
            self._follow(x_D, spread_D, 1.0 / self.seen)
            return 0
        deviation_D = torch.maximum(kept["variance"], kept["spread"] / steps).sqrt()
        z_D = (x_D - kept["mean"]) / (deviation_D + TINY * (1.0 + kept["mean"].abs()))
        kept["sums"] = page(kept["sums"], z_D, self.drift)
        kept["since"] = (kept["since"] + 1.0) * (kept["sums"] > 0)
        sums = {"both": kept["sums"], "rise": kept["sums"][:1], "fall": kept["sums"][1:]}[self.side]
        at = int(sums.argmax())
        self.worst = float(sums.flatten()[at])
        if self.worst > self.threshold:
            return int(kept["since"][1 if self.side == "fall" else 0 :].flatten()[at])
        if self.memory:
            self._follow(x_D, spread_D, 1.0 / self.memory)
        return 0

    def _follow(self, x_D: Tensor, spread_D: Tensor, rate: float) -> None:
        """Means that give the newest chunk the weight `rate`; with 1/n the mean and variance of n chunks."""
        kept, gap_D = self.reference, x_D - self.reference["mean"]
        kept["mean"] = kept["mean"] + rate * gap_D
        kept["variance"] = (1 - rate) * (kept["variance"] + rate * gap_D.square())
        kept["spread"] = torch.lerp(kept["spread"], spread_D, rate)

    def report(self) -> dict[str, float]:
        return {"sum": self.worst}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": self.seen, "worst": self.worst, "reference": self.reference}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.seen, self.worst = saved["seen"], saved["worst"]
        self.reference = {name: tensor.to(self.device) for name, tensor in saved["reference"].items()}
