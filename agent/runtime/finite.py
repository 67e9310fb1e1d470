"""Numbers that are not finite are found before anything is learned from them, and named.

On a CPU every chunk is looked at before it is learned from, and every gradient before the optimiser's step. On a GPU
the host would have to wait for the answer, so the first number that is not finite leaves a mark on the device, which is
read with the log and before a checkpoint is written.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lifelong.agent.objectives.base import Metrics
from lifelong.agent.runtime.rollout import Experience

#: what is looked at in a chunk, in the order in which one makes the next not finite
DATA = ("observation", "reward", "target", "output of the policy", "value")
LEARNED = ("loss", "gradient")


class NotFinite(Exception):
    """The first number of a chunk that is not finite. The trainer knows what to say of it, or drops the chunk.

    Args:
        what: one of `DATA` or `LEARNED`.
        step: within the chunk; 0 for `LEARNED`.
        copy: of the environment; -1 for `LEARNED`.
        task: index of the copy's task; -1 for `LEARNED`.
        start: environment step at which the chunk began, if it is not the last one.
        experience: the chunk, for `DATA` that was looked at before learning.
    """

    def __init__(
        self,
        what: str,
        step: int = 0,
        copy: int = -1,
        task: int = -1,
        start: int | None = None,
        experience: Experience | None = None,
    ) -> None:
        super().__init__(f"{what} is not finite")
        self.what, self.step, self.copy, self.task = what, step, copy, task
        self.start, self.experience = start, experience


class _Place(NamedTuple):
    """Scalars on the device: whether a tensor [T, B, ...] has a number that is not finite, and where the first is."""

    found: Tensor
    step: Tensor
    copy: Tensor


def _data(experience: Experience) -> list[Tensor]:
    chunk = experience.chunk
    return [chunk.obs, chunk.reward, chunk.target, chunk.policy, chunk.value]


def _bad_TB(x: Tensor) -> Tensor:
    """Where a step of a copy holds a number that is not finite, bool [T, B]."""
    return ~x.isfinite().flatten(2).all(-1) if x.dim() > 2 else ~x.isfinite()


def _place(x: Tensor) -> _Place:
    bad_TB = _bad_TB(x)
    first = bad_TB.flatten().to(torch.uint8).argmax()
    return _Place(bad_TB.any(), first // bad_TB.shape[1], first % bad_TB.shape[1])


def bad_copies(experience: Experience) -> Tensor:
    """The copies of a chunk that hold anything that is not finite, bool [B]."""
    parts = [_bad_TB(x).any(0) for x in _data(experience) if x.is_floating_point()]
    return torch.stack(parts).any(0)


class FiniteCheck:
    """Looks at every chunk.

    Args:
        device: of the chunks.
        skip: chunks that are not finite are to be dropped, so each is looked at before it is learned from.
    """

    def __init__(self, device: torch.device, skip: bool = False) -> None:
        self.skip = skip
        #: look before learning; else marks are left
        self.at_once = skip or device.type == "cpu"
        #: (start of the chunk or -1, step, copy, task) of the first of every kind
        self.marks = torch.full((len(DATA) + len(LEARNED), 4), -1, dtype=torch.int64, device=device)

    def before_learning(self, experience: Experience) -> None:
        """Look at a chunk if the host may.

        Raises:
            NotFinite: something in it is not.
        """
        if not self.at_once:
            return
        tensors = _data(experience)
        total = sum(float(x.sum()) for x in tensors if x.is_floating_point())
        if math.isfinite(total):  # an infinity or a NaN makes every sum over it one
            return
        for what, x in zip(DATA, tensors, strict=True):
            if x.is_floating_point() and x.numel():
                found, step, copy = (int(n) for n in _place(x))
                if found:
                    task = int(experience.chunk.task[step, copy])
                    raise NotFinite(what, step, copy, task, experience=experience)

    def before_step(self, loss: Tensor, norm: Tensor) -> None:
        """Look at a loss and the norm of its gradient if the host may.

        Raises:
            NotFinite: one of them is not.
        """
        if self.at_once and not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
            raise NotFinite("gradient" if math.isfinite(float(loss)) else "loss")

    @torch.no_grad()
    def mark(self, start: int, experience: Experience, metrics: Metrics) -> None:
        """Leave a mark on the device if a chunk that began at environment step `start` is the first that is not finite;
        nothing waits for the device."""
        if self.at_once:
            return
        began = torch.full((), start, device=self.marks.device)
        for row, x in enumerate(_data(experience)):
            if x.is_floating_point() and x.numel():
                place = _place(x)
                task = experience.chunk.task[place.step, place.copy]
                self._mark(row, place.found, torch.stack([began, place.step, place.copy, task]))
        nowhere = torch.stack([began, torch.zeros_like(began), *[torch.full_like(began, -1)] * 2])
        for row, name in enumerate(("loss/total", "gradient/norm"), start=len(DATA)):
            if name in metrics:  # it was learned from
                self._mark(row, ~metrics[name].isfinite(), nowhere)

    def _mark(self, row: int, found: Tensor, place: Tensor) -> None:
        new = found & (self.marks[row, 0] < 0)
        self.marks[row] = torch.where(new, place, self.marks[row])

    def look(self) -> None:
        """Read the marks; waits for the device.

        Raises:
            NotFinite: there is one; the first of the run.
        """
        if self.at_once:
            return
        rows = [(*row, what) for row, what in zip(self.marks.tolist(), DATA + LEARNED, strict=True) if row[0] >= 0]
        if rows:
            start, step, copy, task, what = min(rows, key=lambda row: (row[0], row[2] < 0, row[1]))
            raise NotFinite(what, step, copy, task, start)
