"""The contract of detectors: a part that watches training and says when what it sees has changed.

A detector knows nothing of tasks. It gets every chunk, and where it gives an alarm the strategies are told of a
boundary, as they would be of one that is given (see `agent.runtime.detection`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.runtime.rollout import Experience
from lifelong.envs.options import Count, Range

#: what is watched: observations, what the cell reads (features of the encoder, previous action and reward), the memory
#: before each step, rewards, values of the critic, the total loss of the update (one number a chunk)
Signal = Literal["observation", "input", "memory", "reward", "value", "loss"]
#: chunks that windows, means or patience are counted in
Chunks = Annotated[int, Range(1, 10_000)]
#: chunks that a change is thought to lie back at most, by default
LOOKBACK = 8
#: below it a spread is that of rounding
TINY = 1e-6


class Detector:
    """Base of all detectors: takes the signal out of a chunk, counts chunks, and keeps alarms apart.

    A signal of more than `dimensions` numbers is projected to that many by a fixed Gaussian matrix, which keeps
    distances (Johnson & Lindenstrauss 1984). With data-parallel workers all see the same, and decide the same.

    Args:
        signal: what is watched.
        rows: steps of a chunk that are looked at, about, of all copies alike, where a detector looks at single steps.
        dimensions: of the signal at most.
        gap: chunks after a boundary in which there is no other.
        lookback: chunks that a change is thought to lie back at most, this one included.
    """

    def __init__(
        self,
        *,
        signal: Signal = "observation",
        rows: Count = 64,
        dimensions: Annotated[int, Range(1, 512)] = 16,
        gap: Chunks = 20,
        lookback: Annotated[int, Range(1, 1000)] = LOOKBACK,
    ) -> None:
        self.signal, self.rows, self.dimensions = signal, rows, dimensions
        self.gap, self.lookback = gap, lookback
        self.age = 0  # chunks since the last boundary

    # ---- what a detector writes --------------------------------------------------------------------------------------

    def update(self, values_TBD: Tensor) -> int:
        """Take one more chunk into account: 0, or how many of the last chunks, this one included, seem to be of another
        context than those before.

        Args:
            values_TBD: the signal of this worker's copies, float64.
        """
        raise NotImplementedError

    def restart(self) -> None:
        """There was a boundary: what was learned of the context that ended counts no more."""

    def report(self) -> dict[str, float]:
        """Scalars for the log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data that resume needs, equal on all workers."""
        return {"age": self.age}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.age = saved["age"]

    # ---- what the runtime calls --------------------------------------------------------------------------------------

    def setup(self, seed: int, copies: int, device: torch.device, workers: Workers = ALONE) -> None:
        """Called once before training; `seed` and `copies`, those of all workers together, are the same on all."""
        self.seed, self.copies, self.device, self.workers = seed, copies, device, workers
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def watch(self, experience: Experience, metrics: Mapping[str, Tensor]) -> int:
        """Look at a chunk: 0, or how many of the last chunks, this one included, are of a new context.

        Args:
            experience: the chunk.
            metrics: losses of the update; none if it was not learned from.
        """
        values_TBD = self.values(experience, metrics)
        self.age += 1
        if values_TBD is None:
            return 0
        new = self.update(values_TBD.double())
        if not new or self.age <= self.gap:
            return 0
        self.restart()
        self.age = min(new, self.lookback)
        return self.age

    # ---- what detectors share ----------------------------------------------------------------------------------------

    def values(self, experience: Experience, metrics: Mapping[str, Tensor]) -> Tensor | None:
        """The signal, [T, B, D]; None if the chunk has none."""
        chunk = experience.chunk
        if self.signal == "loss":
            return metrics["loss/total"].view(1, 1, 1) if metrics else None
        found = {
            "observation": chunk.obs,
            "input": experience.x_TBD,
            "memory": experience.state_TBS,
            "reward": chunk.reward,
            "value": chunk.value,
        }[self.signal]
        return self.projected(found.flatten(2) if found.dim() > 2 else found.unsqueeze(-1))

    def projected(self, values_TBD: Tensor) -> Tensor:
        """At most `dimensions` numbers a step."""
        size = values_TBD.shape[-1]
        if size <= self.dimensions:
            return values_TBD
        draw = torch.Generator().manual_seed(self.seed)
        matrix = torch.randn(size, self.dimensions, generator=draw) / self.dimensions**0.5
        return values_TBD.float() @ matrix.to(values_TBD.device)

    def sample(self, values_TBD: Tensor) -> Tensor:
        """About `rows` steps, equally many of every copy of all workers: [R, all copies, D].

        Copy b is looked at in places of its own (golden ratio), so that no phase of an episode is left out where all
        copies keep step.
        """
        T, B, _ = values_TBD.shape
        count = self.workers.count
        each = min(T, -(-self.rows // (B * count)))
        copy_B = torch.arange(B, dtype=torch.float64) + self.workers.rank * B + 1
        at_RB = (copy_B * 0.6180339887498949 + torch.arange(each, dtype=torch.float64)[:, None] / each) % 1.0 * T
        at_RB = at_RB.long().to(values_TBD.device)
        rows = values_TBD[at_RB, torch.arange(B, device=values_TBD.device)]
        return self.workers.stack(rows.contiguous()).transpose(0, 1).flatten(1, 2)

    def mean(self, values_TBD: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every number over the steps of a chunk, all workers together: [D] each."""
        flat = values_TBD.flatten(0, 1)
        moments = torch.stack([flat.mean(0), flat.square().mean(0)])
        self.workers.mean_([moments])
        return moments[0], (moments[1] - moments[0].square()).clamp(min=0.0)
