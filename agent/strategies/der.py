"""Dark experience replay: old outputs are matched, not labels (Buzzega et al. 2020, arXiv 2004.07211, eq. 5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.policy import Outputs
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.planned import Match, Replays
from lifelong.agent.strategies.replaying import Replaying
from lifelong.envs.options import Weight
from lifelong.replay.chunk import Chunk, concatenate


class DER(Replaying):
    """On replayed sequences the policy's parameters z (logits) and values are held to those recorded when they were
    acted; the objective sees live steps only:

        L = objective(live) + mean over replayed steps of [matching ||z - z_mu||^2 + value_matching (V - V_mu)^2]

    What was recorded depends on the memory of then, so the policy runs over the whole sequence from the stored memory;
    see `burn_in`. Needs no boundaries.

    Args:
        matching: alpha, weight of the squared distance of the policy's parameters.
        value_matching: weight of the squared distance of the values, which the paper does not have.
        options: see `Replaying`.
    """

    #: beta, weight of the objective on a second draw
    replay_weight: float = 0.0

    def __init__(self, *, matching: Weight = 0.1, value_matching: Weight = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.matching, self.value_matching = matching, value_matching
        #: the sequences that are matched, and which copy of the batch is the first of them
        self.matched: tuple[Chunk, int] | None = None

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        drawn = self.draw(ctx, chunk.copies)
        if drawn is None:
            return chunk
        self.matched = drawn, chunk.copies
        return concatenate([chunk, replace(drawn, weight=torch.zeros_like(drawn.weight))])

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        super().extra_loss(ctx, chunk, outputs, live)
        if self.matched is None:
            return None
        (drawn, first), self.matched = self.matched, None
        policy, value = (x[:, first : first + drawn.copies] for x in (outputs.policy, outputs.value))
        mean = ctx.objective.mean(drawn)
        policy_loss = mean((policy - drawn.policy).square().sum(-1))
        value_loss = mean((value - drawn.value).square())
        self.metrics |= {"matching": policy_loss.detach(), "value_matching": value_loss.detach()}
        return (self.matching * policy_loss + self.value_matching * value_loss) / (1.0 + self.replay_weight)

    def replays(self, copies: int) -> Replays:
        share = 1.0 + self.replay_weight
        weights = self.matching / share, self.value_matching / share
        match = Match("squared", weights, of_all=False, names=("matching", "value_matching"))
        return replace(super().replays(copies), draws=[(self.beside(copies), 0.0)], match=match)

    def made_for(self) -> tuple[int | float, ...]:
        return *super().made_for(), self.matching, self.value_matching, self.replay_weight
