"""ReDo: recycling dormant units (Sokar, Agarwal, Castro, Evci 2023, ICML, algorithm 1)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.units import Layer, UnitStrategy
from lifelong.envs.options import Count, Range, Share


class ReDo(UnitStrategy):
    """Every `period` chunks the dormant units of each layer are re-initialised (see `agent.strategies.units`).

    A unit is dormant if its activity is at most tau times the mean of its layer (definition 1). In a cell the activity
    is mean |h - running mean|, for a gated unit is hardly ever silent: dormant is one that says the same whatever
    happens. A reset takes away what it always said, which the biases of its readers have to learn.

    Args:
        tau: share of the mean activity of the layer.
        period: chunks from one look to the next.
        decay: of the running means; 0 looks at the last chunk alone, as the paper does.
    """

    def __init__(
        self, *, tau: Share = 0.025, period: Count = 1000, decay: Annotated[float, Range(0.0, 1.0 - 1e-6)] = 0.9
    ) -> None:
        super().__init__(decay)
        self.tau, self.period = tau, period
        self.chunks = 0
        self.dormant: dict[str, float] = {}

    def after_chunk(self, ctx: Context, experience: Experience) -> Tensor | None:
        self.chunks += 1
        return super().after_chunk(ctx, experience)

    def choose(self, layer: Layer, worth_N: Tensor, age_N: Tensor) -> Tensor:
        if self.chunks % self.period:
            return torch.zeros(0, dtype=torch.int64)
        units = (worth_N <= self.tau * worth_N.mean()).nonzero().flatten()
        self.dormant[layer.name] = len(units) / layer.size
        return units

    def report(self) -> dict[str, float]:
        """Beside the resets, the share of dormant units at the last look."""
        return {**super().report(), **{f"dormant/{name}": self.dormant.get(name, 0.0) for name in self.resets}}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "chunks": self.chunks, "dormant": self.dormant}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.chunks, self.dormant = saved["chunks"], dict(saved["dormant"])
