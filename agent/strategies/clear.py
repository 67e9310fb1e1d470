"""CLEAR: replay of whole sequences with behavioural cloning (Rolnick et al. 2019, arXiv 1811.11682, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from lifelong.agent.policy import Outputs
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.planned import Match, Replays
from lifelong.agent.strategies.replaying import Replaying
from lifelong.envs.options import Weight
from lifelong.replay.chunk import Chunk


class CLEAR(Replaying):
    """Learns from live and replayed sequences side by side; on the replayed ones the old policy and values are cloned.

    Replay goes through the objective with its off-policy correction (V-trace); cloning adds
    `policy_cloning * KL(mu || pi) + value_cloning * (V - V_mu)^2` on replayed steps only. The paper adds up all terms
    over the steps of the batch, live and replayed; here all of them are divided by the number M of these steps, so the
    weights are those of the paper for any size of the batch and any `ratio`:

        L = (sum over all steps of the objective + sum over replayed steps of the cloning terms) / M

    Needs no boundaries.

    Args:
        policy_cloning: weight of the KL from the recorded policy mu.
        value_cloning: weight of the squared distance to the recorded value.
        options: see `Replaying`.
    """

    def __init__(self, *, policy_cloning: Weight = 0.01, value_cloning: Weight = 0.005, **options: Any) -> None:
        super().__init__(**options)
        self.policy_cloning, self.value_cloning = policy_cloning, value_cloning

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        super().extra_loss(ctx, chunk, outputs, live)
        if chunk.copies == live:
            return None
        mean, every = ctx.objective.mean(chunk, live), ctx.objective.mean(chunk)
        kl = mean(ctx.policy.distribution.kl(chunk.policy[:, live:], outputs.policy[:, live:]))
        value = mean((outputs.value[:, live:] - chunk.value[:, live:]).square())
        self.metrics |= {"cloning_kl": kl.detach(), "cloning_value": value.detach()}
        share = mean.total / every.total  # of the replayed steps
        return share * (self.policy_cloning * kl + self.value_cloning * value)

    def replays(self, copies: int) -> Replays:
        weights = self.policy_cloning, self.value_cloning
        match = Match("kl", weights, of_all=True, names=("cloning_kl", "cloning_value"))
        return replace(super().replays(copies), match=match)

    def made_for(self) -> tuple[int | float, ...]:
        return *super().made_for(), self.policy_cloning, self.value_cloning
