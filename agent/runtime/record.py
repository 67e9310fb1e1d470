"""Record: what a run is, and the running means between two lines of its log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifelong.agent.config import Config
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.runtime.rollout import Experience
from lifelong.envs.border import Restarts

if TYPE_CHECKING:
    from lifelong.agent.runtime.changes import Change
    from lifelong.agent.runtime.logging import NoLog, RunLog


class Record:
    """What a run is, and sums that are kept on the device until they are logged.

    Args:
        config: resolved config.
        folder: run folder.
        versions: of Python and the packages.
        tasks: names of the tasks.
        device: where the sums are kept.
        restarts: of the environments; none if not given.
        alike: whether returns of different tasks are on one scale, so that there is a mean of them.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        versions: dict[str, str],
        tasks: list[str],
        device: torch.device,
        restarts: Restarts | None = None,
        alike: bool = True,
    ) -> None:
        self.config, self.folder, self.versions, self.tasks = config, folder, versions, tasks
        self.restarts = restarts or Restarts()
        self.alike = alike
        #: `agent.runtime.machine.identity`; set when the run is built
        self.identity: dict[str, Any] = {}
        self.sums: dict[str, Tensor] = {}
        self.updates = 0
        #: in what the config differs from that of the checkpoint the run goes on from
        self.changes: list[Change] = []
        #: chunks that were dropped because something in them was not finite
        self.skipped = 0
        self.return_sum = torch.zeros(len(tasks), device=device, dtype=torch.float64)
        self.return_count = torch.zeros(len(tasks), device=device, dtype=torch.float64)

    def about(self, log: RunLog | NoLog) -> dict[str, Any]:
        """For the manifest of a checkpoint: what it ran on, and how much of the log belongs to it."""
        return {"versions": self.versions, "identity": self.identity, "log": log.sizes()}

    def add(self, metrics: dict[str, Tensor], experience: Experience, chunks: int = 0) -> None:
        """Add one chunk; or several, whose metrics are [chunks]."""
        if chunks:  # one after the other, so that it does not matter how many come at once
            rows = torch.stack([*metrics.values()], -1)
            total = torch.stack([self.sums.get(name, torch.zeros_like(value[0])) for name, value in metrics.items()])
            for row in rows:
                total = total + row
            self.sums |= zip(metrics, total.unbind(), strict=True)
        else:
            for name, value in metrics.items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.updates += max(1, chunks)
        done = experience.done_TB
        task = experience.chunk.task.flatten()
        ended = torch.where(done, experience.episode_return_TB, 0.0).flatten().double()
        self.return_sum.index_add_(0, task, ended)
        self.return_count.index_add_(0, task, done.flatten().double())

    def flush(self, workers: Workers = ALONE) -> dict[str, float]:
        """Means since the last flush: losses, and the return of the episodes that ended, per task and over all."""
        workers.mean_(list(self.sums.values()))
        workers.sum_([self.return_sum, self.return_count])
        scalars = {name: float(total) / max(self.updates, 1) for name, total in self.sums.items()}
        total, count = self.return_sum.tolist(), self.return_count.tolist()
        for name, s, n in zip(self.tasks, total, count, strict=True):
            if n:
                scalars[f"return/{name}"] = s / n
        if self.alike and sum(count):
            scalars["continual/online_return"] = sum(total) / sum(count)
        if self.skipped:
            scalars["nonfinite/skipped_chunks"] = float(self.skipped)
        if self.restarts.count:
            scalars["env/restarts"] = float(self.restarts.count)
        self.sums, self.updates = {}, 0
        self.return_sum.zero_()
        self.return_count.zero_()
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """The sums and counts."""
        sums = {"sums": self.sums, "updates": self.updates, "skipped": self.skipped, "restarts": self.restarts.count}
        return {**sums, "return": self.return_sum, "count": self.return_count}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.sums = {name: x.to(self.return_sum.device) for name, x in saved["sums"].items()}
        self.updates, self.skipped = saved["updates"], saved["skipped"]
        self.restarts.count = saved["restarts"]
        self.return_sum.copy_(saved["return"])
        self.return_count.copy_(saved["count"])
