"""Activity regularisation: what the cell says should be small, and change slowly.

Merity, McCann & Socher 2017, *Revisiting activation regularization for language RNNs* (arXiv 1708.01009), eqs. 1 and 2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.policy import Outputs
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import Weight
from lifelong.replay.chunk import Chunk


class Activity(Strategy):
    """Adds alpha * mean y_t^2 + beta * mean (y_t - y_{t-1})^2 to the loss, y the cell's output.

    Means are over units and steps that count; the second is over pairs of steps of one episode within the chunk.
    Replayed copies are counted, too. No dropout stands between, as it does in the paper.

    Args:
        alpha: of the size (AR).
        beta: of the change (TAR).
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(self, *, alpha: Weight = 0.0, beta: Weight = 0.01) -> None:
        self.alpha, self.beta = alpha, beta
        self.metrics: dict[str, Tensor] = {}

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        y_TBH = outputs.features
        assert y_TBH is not None
        mean = ctx.objective.mean(chunk)
        change_TB = (y_TBH[1:] - y_TBH[:-1]).square().mean(-1) * ~chunk.is_init[1:]
        change_TB = torch.cat([torch.zeros_like(change_TB[:1]), change_TB])
        size, change = mean(y_TBH.square().mean(-1)), mean(change_TB)
        self.metrics = {"size": size.detach(), "change": change.detach()}
        return self.alpha * size + self.beta * change

    def report(self) -> dict[str, float]:
        """Both means, of the last minibatch."""
        return {name: float(x) for name, x in self.metrics.items()}
