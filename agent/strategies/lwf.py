"""LwF: learning without forgetting, distillation from the policy of the last boundary on the data of now.

Li & Hoiem 2016 (arXiv 1606.09282, eqs. 2-3), with the temperature of Hinton et al. 2015 (arXiv 1503.02531).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.objectives.base import Mean
from lifelong.agent.policy import Outputs, Policy, inputs_of
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating
from lifelong.envs.options import Range, Steps, Weight
from lifelong.replay.chunk import Chunk


class LwF(Consolidating):
    """Adds strength * (T^2 KL(p_old^(1/T) || p^(1/T)) + value_weight (V - V_old)^2), a mean over the live steps.

    The old policy is a frozen copy of that of the last boundary. It reads what the run reads, and remembers with a
    memory of its own, which begins at the run's and is rolled alongside it: what an old policy says hangs on what *it*
    would remember. No data of old tasks are needed. With a head per task every head that was trained before is
    distilled on the new task's inputs, except where it is the one in training.

    Args:
        strength: of the distance.
        temperature: T; p^(1/T) is p flattened, of logits z softmax(z / T), of a Gaussian one with T times the variance.
        value_weight: of the squared distance of the values.
        every: freeze a new copy every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "shard"

    def __init__(
        self,
        *,
        strength: Weight = 1.0,
        temperature: Annotated[float, Range(0.0, 1e3, above=True)] = 2.0,
        value_weight: Weight = 0.5,
        every: Steps = 0,
    ) -> None:
        super().__init__(every)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.strength, self.temperature, self.value_weight = strength, temperature, value_weight
        self.old: Policy | None = None
        self.heads: list[int] = []  # that were trained when it was frozen
        self.metrics: dict[str, Tensor] = {}

    def setup(self, ctx: Context, seed: int) -> None:
        self.policy = ctx.policy
        #: the old policy's memory before this chunk and after it, and the copies whose memory it has
        self.memory_BS = ctx.policy.cell.initial_state(ctx.copies, ctx.device)
        self.after_BS = self.memory_BS.clone()
        self.known_B = torch.zeros(ctx.copies, dtype=torch.bool, device=ctx.device)

    def consolidate(self, ctx: Context, source: Source) -> None:
        self.old = self._frozen()
        self.known_B.zero_()
        if ctx.policy.actor.tasks > 1:
            trained = range(ctx.policy.actor.tasks) if ctx.task is None else [ctx.task]
            self.heads = sorted({*self.heads, *trained})
        else:
            self.heads = [0]

    def _frozen(self) -> Policy:
        return copy.deepcopy(self.policy).requires_grad_(False)

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        if self.old is None:
            return None
        assert outputs.features is not None  # of a whole chunk they are there
        now = chunk if chunk.copies == live else chunk.select(torch.arange(live, device=chunk.reward.device))
        rows, inputs = slice(None) if ctx.rows is None else ctx.rows, inputs_of(now)
        with torch.no_grad():
            start_BS = torch.where(self.known_B[rows].unsqueeze(1), self.memory_BS[rows], now.state)
            old_TBH, self.after_BS[rows] = self.old.cell.sequence(self.old.encode(inputs), start_BS, now.is_init)
        new_TBH, mean = outputs.features[:, :live], ctx.objective.mean(chunk)
        mean = Mean(mean.weight[:, :live], total=mean.total)
        distribution, kl = ctx.policy.distribution, torch.zeros((), device=old_TBH.device)
        for head in self.heads:
            its = replace(inputs, task=torch.full_like(inputs.task, head))
            said, says = self.old.heads(old_TBH, its), ctx.policy.heads(new_TBH, its)
            p, q = (distribution.tempered(x.policy, self.temperature) for x in (said, says))
            elsewhere = inputs.task != head if ctx.policy.actor.tasks > 1 else 1.0
            kl = kl + mean(distribution.kl(p, q) * elsewhere) / len(self.heads)
        value = mean((outputs.value[:, :live] - said.value).square())
        self.metrics = {"kl": kl.detach(), "value": value.detach()}
        return self.strength * (self.temperature**2 * kl + self.value_weight * value)

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        if self.old is not None:
            rows = slice(None) if experience.copies is None else experience.copies
            self.memory_BS[rows] = self.after_BS[rows]
            self.known_B[rows] = True

    def report(self) -> dict[str, float]:
        return {name: float(x) for name, x in self.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "old": None if self.old is None else dict(self.old.state_dict()),
            "memory": self.memory_BS,
            "known": self.known_B,
            "heads": self.heads,
            "metrics": self.metrics,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.old = None if saved["old"] is None else self._frozen()
        if self.old is not None:
            now = self.old.state_dict()
            self.old.load_state_dict({name: grown(x, now[name]) for name, x in saved["old"].items()})
        if saved["memory"].shape == self.memory_BS.shape:  # else there are other copies, whose memory begins anew
            self.memory_BS = saved["memory"].to(self.memory_BS, copy=True)
            self.known_B = saved["known"].to(self.known_B, copy=True)
        self.heads, self.metrics = saved["heads"], saved["metrics"]
