"""CLEAR: replay of whole sequences with behavioural cloning (Rolnick et al. 2019, arXiv 1811.11682, section 3)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from lifelong.agent.policy import Outputs
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import LARGEST, Count, Range, Steps, Weight
from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.chunk import Chunk, concatenate
from lifelong.replay.sampling import SAMPLING
from lifelong.replay.writing import WRITING


class CLEAR(Strategy):
    """Learns from live and replayed sequences side by side; on the replayed ones the old policy and values are cloned.

    Replay goes through the objective with its off-policy correction (V-trace); cloning adds
    `policy_cloning * KL(mu || pi) + value_cloning * (V - V_mu)^2` on replayed steps only. The paper adds up all terms
    over the steps of the batch, live and replayed; here all of them are divided by the number M of these steps, so the
    weights are those of the paper for any size of the batch and any `ratio`:

        L = (sum over all steps of the objective + sum over replayed steps of the cloning terms) / M

    Needs no boundaries.

    Args:
        capacity: sequences kept, by all workers together; each keeps its own.
        ratio: replayed copies per live copy; 1 is half and half.
        policy_cloning: weight of the KL from the recorded policy mu.
        value_cloning: weight of the squared distance to the recorded value.
        writing: `reservoir` (every sequence alike) or `ring` (the newest).
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
        policy_cloning: Weight = 0.01,
        value_cloning: Weight = 0.005,
        writing: Literal["reservoir", "ring"] = "reservoir",
        burn_in: Steps = 0,
        start: Count = 256,
    ) -> None:
        if capacity < 1 or ratio <= 0 or burn_in < 0:
            raise ValueError("capacity must be at least 1, ratio above 0, burn_in not negative")
        self.capacity, self.ratio, self.writing, self.burn_in = capacity, ratio, writing, burn_in
        self.policy_cloning, self.value_cloning = policy_cloning, value_cloning
        self.start = start
        self.metrics: dict[str, Tensor] = {}

    def replay_sequences(self) -> int:
        return self.capacity

    def setup(self, ctx: Context, seed: int) -> None:
        if self.burn_in >= ctx.steps:
            raise ValueError(f"clear.burn_in is {self.burn_in}; it must be below rollout.steps ({ctx.steps})")
        workers = ctx.workers.count
        if self.capacity < workers:
            raise ValueError(
                f"clear.capacity is {self.capacity}; it must be at least one sequence for {workers} workers"
            )
        self.device, self.workers, self.steps = ctx.device, workers, ctx.steps
        self.share, self.begin = self.capacity // workers, max(1, min(self.start, self.capacity) // workers)
        self.replay = SequenceReplay(self.share, WRITING[self.writing](), SAMPLING["uniform"](), seed)

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        if self.replay.size < self.begin:
            return chunk
        replayed, rows = self.replay.sample(max(1, round(self.ratio * chunk.copies)))
        replayed.weight[: self.burn_in] = 0.0
        age = ctx.step - self.replay.stamp[rows].double().mean()
        self.metrics["replay_age"] = age
        return concatenate([chunk, replayed])

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        if chunk.copies == live:
            return None
        mean, every = ctx.objective.mean(chunk, live), ctx.objective.mean(chunk)
        kl = mean(ctx.policy.distribution.kl(chunk.policy[:, live:], outputs.policy[:, live:]))
        value = mean((outputs.value[:, live:] - chunk.value[:, live:]).square())
        self.metrics |= {"cloning_kl": kl.detach(), "cloning_value": value.detach()}
        share = mean.total / every.total  # of the replayed steps
        return share * (self.policy_cloning * kl + self.value_cloning * value)

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        self.replay.write(experience.chunk, ctx.step)

    def report(self) -> dict[str, float]:
        return {
            "replay_size": float(self.replay.size * self.workers),
            **{name: float(x) for name, x in self.metrics.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        return {"replay": self.replay.state_dict(), "metrics": self.metrics}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.replay.load_state_dict(saved["replay"], self.device, self.steps)
        self.metrics = saved["metrics"]
