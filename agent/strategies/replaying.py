"""What strategies share that replay: a buffer of whole sequences, and how it is written, sampled and warmed up."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import LARGEST, Count, Range, Steps, Weight
from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.chunk import Chunk, concatenate, resumed
from lifelong.replay.sampling import SAMPLING, PowerLaw
from lifelong.replay.writing import WRITING


class Replaying(Strategy):
    """Stores every chunk that was learned from, and learns from live and replayed sequences side by side.

    A replayed sequence starts from the memory stored with it, as a constant: it has no carry, so its gradient is
    truncated at its start. With `burn_in` the first steps only recompute the memory under the parameters as they are
    now, without a gradient (Kapturowski et al. 2019, R2D2, section 3). `replay_staleness` is then the mean distance
    between the memory that acting had after these steps and the recomputed one.

    Args:
        capacity: sequences kept, by all workers together; each keeps its own. As many as the stream has (steps of the
            stream / rollout.steps) is a perfect memory.
        ratio: replayed copies per live copy; 1 is half and half.
        writing: what is kept: `reservoir` (every sequence alike), `ring` (the newest) or `task_quota` (equally many of
            every task seen, a reservoir within it; needs the task id).
        sampling: what is replayed: `uniform`, `power_law` (age^-age_exponent) or `task_balanced` (every task in the
            buffer alike; needs the task id).
        age_exponent: of `power_law`.
        burn_in: first steps of a replayed sequence that only warm up the memory.
        start: replay once so many sequences are stored.
    """

    needs_off_policy = True
    data_parallel: ClassVar[str] = "shard"

    def __init__(
        self,
        *,
        capacity: Annotated[int, Range(1, LARGEST)] = 8192,
        ratio: Annotated[float, Range(0.0, 1000.0, above=True)] = 1.0,
        writing: Literal["reservoir", "ring", "task_quota"] = "reservoir",
        sampling: Literal["uniform", "power_law", "task_balanced"] = "uniform",
        age_exponent: Weight = 0.5,
        burn_in: Steps = 0,
        start: Count = 256,
    ) -> None:
        if capacity < 1 or ratio <= 0 or burn_in < 0:
            raise ValueError("capacity must be at least 1, ratio above 0, burn_in not negative")
        self.capacity, self.ratio, self.burn_in, self.start = capacity, ratio, burn_in, start
        self.writing = WRITING[writing]()
        self.sampling = PowerLaw(age_exponent) if sampling == "power_law" else SAMPLING[sampling]()
        self.needs_task_id = self.writing.by_task or self.sampling.by_task
        self.metrics: dict[str, Tensor] = {}

    def replay_sequences(self) -> int:
        return self.capacity

    def replay_memories(self) -> int:
        return 2 if self.burn_in else 1

    def setup(self, ctx: Context, seed: int) -> None:
        if self.burn_in >= ctx.steps:
            raise ValueError(f"burn_in is {self.burn_in}; it must be below rollout.steps ({ctx.steps})")
        workers = ctx.workers.count
        if self.capacity < workers:
            raise ValueError(f"capacity is {self.capacity}; it must be at least one sequence for {workers} workers")
        self.device, self.workers, self.steps = ctx.device, workers, ctx.steps
        self.share, self.begin = self.capacity // workers, max(1, min(self.start, self.capacity) // workers)
        self.replay = SequenceReplay(self.share, self.writing, self.sampling, seed)

    def draw(self, ctx: Context, live: int) -> Chunk | None:
        """Stored sequences to stand beside so many live copies, warmed up; None before there are enough of them."""
        if self.replay.size < self.begin:
            return None
        drawn, rows = self.replay.sample(max(1, round(self.ratio * live)), ctx.step)
        self.metrics["replay_age"] = ctx.step - self.replay.stamp[rows].double().mean()
        return self._warmed_up(ctx.policy, drawn) if self.burn_in else drawn

    @torch.no_grad()
    def _warmed_up(self, policy: Policy, drawn: Chunk) -> Chunk:
        """The sequences after the burn-in, which start from the memory that the policy as it is now has there."""
        start_NS, acted_NS = drawn.state.chunk(2, -1)
        x_TND = policy.encode(inputs_of(drawn))[: self.burn_in]
        _, state_NS = policy.cell.sequence(x_TND, start_NS, drawn.is_init[: self.burn_in])
        self.metrics["replay_staleness"] = (acted_NS - state_NS).norm(dim=-1).mean()
        return resumed(drawn, self.burn_in, state_NS)

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        drawn = self.draw(ctx, chunk.copies)
        return chunk if drawn is None else concatenate([chunk, drawn])

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        chunk = experience.chunk
        if self.burn_in:  # beside the memory at the start, that after the burn-in
            chunk = replace(chunk, state=torch.cat([chunk.state, experience.state_TBS[self.burn_in]], -1))
        self.replay.write(chunk, ctx.step)

    def report(self) -> dict[str, float]:
        return {
            "replay_size": float(self.replay.size * self.workers),
            **{name: float(x) for name, x in self.metrics.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        return {"replay": self.replay.state_dict(), "metrics": self.metrics, "burn_in": self.burn_in}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved["replay"]["size"] and saved["burn_in"] != self.burn_in:
            raise ValueError(
                f"burn_in is {self.burn_in}, but a replay holds sequences stored for {saved['burn_in']}; keep that"
            )
        self.replay.load_state_dict(saved["replay"], self.device, self.steps)
        self.metrics = saved["metrics"]
