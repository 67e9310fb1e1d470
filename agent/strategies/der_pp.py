"""DER++: dark experience replay that replays the objective, too (Buzzega et al. 2020, arXiv 2004.07211, eq. 6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.der import DER
from lifelong.agent.strategies.planned import Replays
from lifelong.envs.options import Weight
from lifelong.replay.chunk import Chunk, concatenate


class DERPlusPlus(DER):
    """DER that replays a second, independent draw through the objective, with the weight beta. Everything is divided by
    1 + beta, so that the loss remains a mean:

        L = (objective(live) + beta objective(second draw) + DER's matching of the first draw) / (1 + beta)

    Args:
        replay_weight: beta.
        options: see `DER`.
    """

    def __init__(self, *, replay_weight: Weight = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.replay_weight = replay_weight

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        batch = super().transform_batch(ctx, chunk)
        second = None if batch is chunk else self.draw(ctx, chunk.copies, batch.copies)
        if second is None:
            return batch
        # beta times as much as the live steps, however many were drawn and however many of them count
        counted = second.copies * (second.steps - self.burn_in)
        weight = second.weight * (self.replay_weight * chunk.copies * chunk.steps / counted)
        return concatenate([batch, replace(second, weight=weight)])

    def replays(self, copies: int) -> Replays:
        found, count = super().replays(copies), self.beside(copies)
        return replace(found, draws=[*found.draws, (count, self.replay_weight * copies / count)])
