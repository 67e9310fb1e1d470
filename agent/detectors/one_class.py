"""One-class classification: an ellipsoid around what the present context looks like; a context outside is another.

Tax & Duin 2004, *Support Vector Data Description*, Machine Learning 54, in the form of an ellipsoid of second moments
(Rousseeuw 1985) whose radius is a quantile, so that a known share of the present context lies outside.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.detectors.base import TINY, Chunks, Detector
from lifelong.envs.options import Range, Share


def ellipsoid(rows_MD: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance, the latter with `ridge` times the mean variance on its diagonal."""
    mean_D = rows_MD.mean(0)
    centred = rows_MD - mean_D
    covariance = centred.T @ centred / len(rows_MD)
    size = ridge * covariance.diagonal().mean() + TINY**2
    return mean_D, covariance + size * torch.eye(len(mean_D), dtype=mean_D.dtype, device=mean_D.device)


def distances(rows_MD: Tensor, mean_D: Tensor, covariance_DD: Tensor) -> Tensor:
    """Squared Mahalanobis distances, [M]."""
    centred = (rows_MD - mean_D).T
    solved: Tensor = torch.linalg.solve(covariance_DD, centred)
    return (centred * solved).sum(0)


class OneClass(Detector):
    """Rows of the last `memory` chunks of a context give mean m, covariance C and the radius r: the share `outside` of
    them has (x - m)^T C^-1 (x - m) > r. A chunk is novel if more than `share` of its rows lie outside; `patience` novel
    chunks in a row give an alarm. Chunks that are not novel move the ellipsoid, so it follows a policy that learns.

    Args:
        outside: share of the rows that the ellipsoid leaves out.
        share: of a chunk's rows outside, above which it is novel.
        patience: novel chunks in a row.
        memory: chunks that the ellipsoid is made of; there is none before it has so many.
        ridge: added to the diagonal of the covariance, relative to the mean variance.
        options: see `Detector`.
    """

    def __init__(
        self,
        *,
        outside: Annotated[float, Range(0.0, 0.5, above=True)] = 0.01,
        share: Share = 0.2,
        patience: Chunks = 2,
        memory: Annotated[int, Range(2, 1000)] = 20,
        ridge: Annotated[float, Range(0.0, 1.0)] = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.outside, self.share, self.patience = outside, share, patience
        self.memory, self.ridge = memory, ridge
        self.restart()

    def restart(self) -> None:
        self.last: list[Tensor] = []  # rows [M, D] of the last chunks that were not novel, oldest first
        self.novel, self.found = 0, 0.0

    def update(self, values_TBD: Tensor) -> int:
        rows_MD = self.sample(values_TBD).flatten(0, 1)
        if len(self.last) == self.memory:
            known = torch.cat(self.last)
            mean_D, covariance_DD = ellipsoid(known, self.ridge)
            radius = distances(known, mean_D, covariance_DD).quantile(1 - self.outside)
            self.found = float((distances(rows_MD, mean_D, covariance_DD) > radius).double().mean())
            if self.found > self.share:
                self.novel += 1
                return self.novel if self.novel >= self.patience else 0
        self.novel = 0
        self.last = [*self.last, rows_MD][-self.memory :]
        return 0

    def report(self) -> dict[str, float]:
        return {"outside": self.found}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last": self.last, "novel": self.novel, "found": self.found}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.last = [rows.to(self.device) for rows in saved["last"]]
        self.novel, self.found = saved["novel"], saved["found"]
