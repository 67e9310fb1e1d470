"""Overshooting-bounded gradient descent (Elsayed, Vasan & Mahmood 2024, arXiv 2410.14606, algorithm 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lifelong.agent.optimizers.step_size import StepSize, Streamed
from lifelong.agent.parallel import Workers
from lifelong.envs.options import Range


class ObGD(StepSize):
    """theta += alpha min(1, 1 / M) delta z,    M = alpha kappa max(|delta|, 1) |z|_1

    M is how far the step would overshoot the target, at most, if a unit of trace moved the prediction by kappa. With
    several copies each row is bounded by itself, and the mean over copies is made. The norm is over all parameters, so
    one large block makes the steps of all others small.

    Args:
        params: the parameters.
        lr: alpha.
        kappa: how far below the overshooting step one stays; 2 for values, 3 for policies in the paper.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: Annotated[float, Range(0.0, 1e3)] = 1.0,
        kappa: Annotated[float, Range(0.0, 1e6, above=True)] = 2.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "kappa": kappa})

    @torch.no_grad()
    def scales(self, streamed: Streamed, workers: Workers) -> Tensor:
        group = self.param_groups[0]
        norm_R = streamed.trace_RP.abs().sum(1)
        over_R = group["lr"] * group["kappa"] * streamed.error_R.abs().clamp(min=1.0) * norm_R
        return 1.0 / over_R.clamp(min=1.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """theta -= lr gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            steps = torch._foreach_mul([p.grad for p in moved], group["lr"])
            torch._foreach_sub_(moved, steps)
