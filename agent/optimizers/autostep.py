"""Autostep: a step size for every parameter, learned (Mahmood, Sutton, Degris & Pilarski 2012, ICASSP, "Tuning-free
step-size adaptation"), with traces and semi-gradients as in Kearney et al. 2018 (arXiv 1804.03334, TIDBD)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lifelong.agent.optimizers.step_size import StepSize, Streamed
from lifelong.agent.parallel import Workers
from lifelong.envs.options import Range


class Autostep(StepSize):
    """For every parameter i, with its gradient g_i, trace z_i and memory h_i:

        v_i     <- max(|delta g_i h_i|, v_i + alpha_i g_i z_i (|delta g_i h_i| - v_i) / tau)
        alpha_i <- alpha_i exp(mu delta g_i h_i / v_i);  then all alpha / max(1, sum_i alpha_i g_i z_i)
        theta_i += alpha_i delta z_i
        h_i     <- h_i max(0, 1 - alpha_i g_i z_i) + alpha_i delta z_i

    Without traces (z = g) this is table 1 of the paper, g being the features. The sum keeps a step from overshooting.
    Several rows enter by their means over the copies.

    Args:
        params: the parameters.
        lr: every alpha at first; a schedule scales them all.
        meta: mu, the step size of step sizes.
        tau: over how many steps the normaliser v forgets.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: Annotated[float, Range(0.0, 1e3, above=True)] = 0.01,
        meta: Annotated[float, Range(0.0, 10.0)] = 0.01,
        tau: Annotated[float, Range(1.0, 1e9)] = 1e4,
    ) -> None:
        super().__init__(params, {"lr": lr, "meta": meta, "tau": tau})

    @torch.no_grad()
    def scales(self, streamed: Streamed, workers: Workers) -> Tensor:
        group = self.param_groups[0]
        parameters = group["params"]
        for p in parameters:
            if "v" not in self.state[p]:  # growth: log of alpha / lr; what is zero is a beginning
                self.state[p] |= {name: torch.zeros_like(p) for name in ("growth", "v", "h")}
        growth, v, h = ([self.state[p][name] for p in parameters] for name in ("growth", "v", "h"))
        curve_P = (streamed.share_R.unsqueeze(1) * streamed.slope_RP * streamed.trace_RP).sum(0)
        pull_P = (streamed.share_R * streamed.error_R) @ streamed.slope_RP
        step_P = (streamed.share_R * streamed.error_R) @ streamed.trace_RP
        workers.mean_([curve_P, pull_P, step_P])
        growth_P, v_P, h_P = (streamed.flat(x) for x in (growth, v, h))
        pull_P = pull_P * h_P
        alpha_P = group["lr"] * growth_P.exp()
        v_P = torch.maximum(pull_P.abs(), v_P + alpha_P * curve_P * (pull_P.abs() - v_P) / group["tau"])
        turn_P = torch.where(v_P > 0, pull_P / v_P.clamp(min=torch.finfo(v_P.dtype).tiny), torch.zeros_like(v_P))
        growth_P = growth_P + group["meta"] * turn_P
        growth_P = growth_P - (group["lr"] * growth_P.exp() * curve_P).sum().clamp(min=1.0).log()
        alpha_P = group["lr"] * growth_P.exp()
        h_P = h_P * (1.0 - alpha_P * curve_P).clamp(min=0.0) + alpha_P * step_P
        for kept, new in ((growth, growth_P), (v, v_P), (h, h_P)):
            torch._foreach_copy_(kept, streamed.split(new))
        return torch.ones_like(streamed.error_R)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """theta -= alpha gradient, entry by entry."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * self.state[p]["growth"].exp() * p.grad)
