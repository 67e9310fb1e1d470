"""Recode: a reward for what was seldom seen, counted in a memory of clusters that is never cleared.

Saade et al. 2024, *Unlocking the Power of Representations in Long-term Novelty-based Exploration* (ICLR; arXiv
2305.01521), section 3; the embedding by action prediction is that of Pathak et al. 2017 (ICML).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.modules.encoders import MLP
from lifelong.agent.modules.novelty import Recode as Memory
from lifelong.agent.runtime.randomness import aside
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import Count, Range, Share, Weight
from lifelong.replay.chunk import Chunk

#: eps of the kernel
EPS = 1e-3


class Recode(Strategy):
    """Adds weight * max(0, n(o_{t+1}) - mean(n)) / sd(n) to the reward r_t, for the loss alone.

    n is the novelty of RECODE's memory (see `agent.modules.novelty`), mean and sd are those of all novelties so far.
    The paper divides by sd alone: in a small world, where soon all is known, that pays a constant for every step, and
    a task that is over early is not worth its end (BYOL-Explore, Guo et al. 2022, cuts at the mean, too). Where an
    episode ends nothing is added. What is embedded is one observation and not the memory of the policy, so that the way
    there does not count: f(o) is a network that learns, together with a second one, to tell from f(o_t) and f(o_{t+1})
    which action was taken, by one step of Adam a chunk. What the agent cannot bring about has no place in it.

    Replay keeps the rewards of the environment, and so do the log and the evaluation. Nothing of it depends on the
    policy's memory, so cells and carry see another reward and no more.

    Args:
        weight: of the reward.
        hidden: units of the embedding network.
        dimensions: of the embedding.
        lr: of Adam.
        rows: embeddings of a chunk that go into the memory; all are asked.
        clusters: of the memory.
        decay: gamma of the counts, once an embedding that goes in.
        rate: tau of the squared scale d^2.
        far: squared distance over d^2 from which an embedding may become a cluster.
        insert: probability that it does, once all clusters are in use.
        neighbours: nearest clusters that the scale is made of.
    """

    data_parallel: ClassVar[str] = "shard"

    def __init__(
        self,
        *,
        weight: Weight = 0.1,
        hidden: Count = 64,
        dimensions: Annotated[int, Range(1, 4096)] = 32,
        lr: Annotated[float, Range(0.0, 10.0, above=True)] = 1e-3,
        rows: Annotated[int, Range(1, 10**6)] = 32,
        clusters: Annotated[int, Range(2, 100_000)] = 1024,
        decay: Annotated[float, Range(0.0, 1.0, above=True)] = 0.9999,
        rate: Share = 0.01,
        far: Weight = 0.2,
        insert: Share = 0.05,
        neighbours: Annotated[int, Range(1, 1000)] = 10,
    ) -> None:
        self.weight, self.lr, self.rows = weight, lr, rows
        self.hidden, self.dimensions, self.clusters = hidden, dimensions, clusters
        self.constants = (decay, rate, far, insert, neighbours, EPS)
        self.moments = torch.zeros(3, dtype=torch.float64)  # count, sum and sum of squares of all novelties
        self.metrics: dict[str, float] = {}

    def setup(self, ctx: Context, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.memory = Memory(self.clusters, self.dimensions, *self.constants, self.generator)
        distribution = ctx.policy.distribution
        space = ctx.policy.encoder.space
        with aside(seed):
            self.embedding = MLP(space, hidden=[self.hidden, self.dimensions]).to(ctx.device)
            self.action = nn.Linear(2 * self.dimensions, distribution.size).to(ctx.device)
        parameters = [*self.embedding.parameters(), *self.action.parameters()]
        self.optimizer = torch.optim.Adam(parameters, self.lr)

    def embed(self, chunk: Chunk) -> Tensor:
        """f of all observations and of the one after the last step, [T + 1, B, dimensions]."""
        obs = torch.cat([chunk.obs, chunk.next_obs[None]])
        e: Tensor = self.embedding(obs.flatten(0, 1))
        return e.unflatten(0, obs.shape[:2])

    def extra_reward(self, ctx: Context, chunk: Chunk) -> Tensor | None:
        after_TBE = self.embed(chunk)[1:].double().cpu()
        goes_on = ~(chunk.terminated | chunk.truncated)
        if not self.memory.used:  # everything is new
            return None
        novelty_TB = self.memory.novelty(after_TBE.flatten(0, 1)).view(after_TBE.shape[:2])
        self.moments += torch.stack([torch.ones_like(novelty_TB), novelty_TB, novelty_TB.square()]).sum((1, 2))
        count, total, squares = self.moments.tolist()
        deviation = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
        self.metrics["novelty"] = float(novelty_TB.mean())
        bonus_TB = (novelty_TB - total / count).clamp(min=0.0) / (deviation + EPS)
        self.metrics["reward"] = self.weight * float(bonus_TB.mean())
        return self.weight * bonus_TB.to(chunk.reward) * goes_on

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        chunk = experience.chunk
        with torch.enable_grad():
            e_TBE = self.embed(chunk)
            said = self.action(torch.cat([e_TBE[:-1], e_TBE[1:]], -1))
            log_prob_TB, _ = ctx.policy.distribution.log_prob_and_entropy(said, chunk.action)
            goes_on = ~(chunk.terminated | chunk.truncated)
            loss = -(log_prob_TB * goes_on).sum() / goes_on.sum().clamp(min=1)
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        self.metrics["surprise"] = float(loss.detach())
        rows_ME = e_TBE.detach()[:-1].flatten(0, 1)
        chosen = torch.randperm(len(rows_ME), generator=self.generator)[: self.rows]
        for e_E in rows_ME[chosen.to(rows_ME.device)].double().cpu():
            self.memory.add(e_E)
        self.metrics["clusters"] = float(self.memory.used)

    def report(self) -> dict[str, float]:
        """Mean novelty and mean reward of the last chunk, -log p of its actions, clusters in use."""
        return dict(self.metrics)

    def state_dict(self) -> dict[str, Any]:
        return {
            "memory": self.memory.state_dict(),
            "embedding": self.embedding.state_dict(),
            "action": self.action.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "moments": self.moments,
            "metrics": self.metrics,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.memory.load_state_dict(saved["memory"])
        self.embedding.load_state_dict(saved["embedding"])
        self.action.load_state_dict(saved["action"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.moments, self.metrics = saved["moments"].cpu().clone(), dict(saved["metrics"])
        self.generator.set_state(saved["generator"].cpu())
