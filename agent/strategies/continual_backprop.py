"""Continual backpropagation (Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature, methods)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.units import Layer, UnitStrategy
from lifelong.envs.options import Range, Share, Steps


class ContinualBackprop(UnitStrategy):
    """After every chunk a share of the mature units, those of the lowest utility, is re-initialised.

        u_i <- decay u_i + (1 - decay) activity_i sum |w_out|        (contribution utility)

    The sum is over all that reads the unit, recurrent and feed-forward; the activity of a cell's unit is
    mean |h - running mean| (see `agent.strategies.units`). `rate` times the number of mature units is added up from
    chunk to chunk, in each layer, and whole units are replaced. The paper counts gradient steps; here it is chunks.

    Args:
        rate: share of the mature units replaced a chunk, rho.
        maturity: chunks before a unit may be replaced, m.
        decay: of utility and running means, eta.
    """

    def __init__(
        self,
        *,
        rate: Share = 1e-4,
        maturity: Steps = 1000,
        decay: Annotated[float, Range(0.0, 1.0 - 1e-6)] = 0.99,
    ) -> None:
        super().__init__(decay)
        self.rate, self.maturity = rate, maturity

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.owed = {layer.name: 0.0 for layer in self.layers}  # units that ought to have been replaced

    def worth(self, ctx: Context, layer: Layer, activity_N: Tensor) -> Tensor:
        out_N = torch.zeros_like(activity_N)
        for part in layer.outgoing:
            weight = ctx.policy.get_parameter(part.parameter).movedim(part.dim, 0)
            out_N += weight.flatten(1).abs().sum(1)[part.index].sum(1)
        return activity_N * out_N

    def choose(self, layer: Layer, worth_N: Tensor, age_N: Tensor) -> Tensor:
        mature_N = age_N > self.maturity
        owed = self.owed[layer.name] + self.rate * int(mature_N.sum())
        count = int(owed)
        self.owed[layer.name] = owed - count
        if not count:
            return torch.zeros(0, dtype=torch.int64)
        return worth_N.cpu().masked_fill(~mature_N, torch.inf).topk(count, largest=False).indices

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "owed": self.owed}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.owed = dict(saved["owed"])
