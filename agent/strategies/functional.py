"""Functional regularisation: outputs on stored sequences of old tasks stay what they were when the tasks ended.

Benjamin, Rolnick & Koerding 2019, *Measuring and regularizing networks in function space* (arXiv 1805.08289,
section 3).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from torch import Tensor

from lifelong.agent.policy import Outputs
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating
from lifelong.envs.options import LARGEST, Count, Range, Steps, Weight
from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.chunk import Chunk
from lifelong.replay.sampling import Sampling, TaskBalanced, Uniform
from lifelong.replay.writing import Reservoir, TaskQuota, Writing


class Functional(Consolidating):
    """Adds strength * (KL(pi_then || pi) + value_weight (V - V_then)^2), a mean over steps of stored sequences.

    When a task ends the finished policy plays fresh whole episodes of it; sequences drawn from them are stored with its
    outputs. So nothing of the time when it was still learning is held on to, as replay (`clear`, `der`) does. Rewards
    are not used: it works with every objective. A stored sequence starts from the memory of then, as a constant, so its
    gradient is truncated at its start.

    Args:
        strength: of the distance.
        value_weight: of the squared distance of the values.
        sequences: stored of every task, at least; every copy gives equally many.
        capacity: sequences kept at most, by all workers together; each keeps its own. Tasks share it alike.
        batch: sequences drawn for one minibatch, tasks alike, by all workers together.
        every: store every so many steps instead of at boundaries, and keep all that was ever stored alike, whatever
            task it came from; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "shard"

    def __init__(
        self,
        *,
        strength: Weight = 1.0,
        value_weight: Weight = 0.5,
        sequences: Count = 256,
        capacity: Annotated[int, Range(1, LARGEST)] = 2048,
        batch: Count = 64,
        every: Steps = 0,
    ) -> None:
        super().__init__(every, sequences)
        if capacity < 1 or sequences < 1 or batch < 1:
            raise ValueError("sequences, capacity and batch must be at least 1")
        self.strength, self.value_weight = strength, value_weight
        self.capacity, self.batch = capacity, batch
        self.metrics: dict[str, Tensor] = {}

    def replay_sequences(self) -> int:
        return self.capacity

    def setup(self, ctx: Context, seed: int) -> None:
        self.device, self.workers, self.steps = ctx.device, ctx.workers.count, ctx.steps
        if self.capacity < self.workers:
            raise ValueError(
                f"capacity is {self.capacity}; it must be at least one sequence for {self.workers} workers"
            )
        parts: tuple[Writing, Sampling] = (Reservoir(), Uniform()) if self.every else (TaskQuota(), TaskBalanced())
        self.replay = SequenceReplay(self.capacity // self.workers, *parts, seed)

    def consolidate(self, ctx: Context, source: Source) -> None:
        for experience in self.fresh(ctx, source):
            self.replay.write(experience.chunk, ctx.step)

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        if not self.replay.size:
            return None
        drawn, _ = self.replay.sample(max(1, self.batch // self.workers), ctx.step)
        now, mean = ctx.policy.sequence(drawn, drawn.state), ctx.objective.mean(drawn)
        kl = mean(ctx.policy.distribution.kl(drawn.policy, now.policy))
        value = mean((now.value - drawn.value).square())
        self.metrics = {"kl": kl.detach(), "value": value.detach()}
        return self.strength * (kl + self.value_weight * value)

    def report(self) -> dict[str, float]:
        stored = {"stored": float(self.replay.size * self.workers)}
        return stored | {name: float(x) for name, x in self.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "replay": self.replay.state_dict(), "metrics": self.metrics}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.replay.load_state_dict(saved["replay"], self.device, self.steps)
        self.metrics = saved["metrics"]
