"""Intentional updates: the step that changes a prediction by a share of its error (Sharifnassab et al. 2026, arXiv
2604.19033, with traces, RMS-normalised gradients and a clip of the error)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lifelong.agent.optimizers.step_size import StepSize, Streamed
from lifelong.agent.parallel import Workers
from lifelong.envs.options import Range, Share


class Intentional(StepSize):
    """With g the gradient of the prediction, z its trace, m = sqrt(E g^2) entry by entry and |x|_m^2 = sum x^2 / m:

        theta += eta delta' z / m / sqrt(s |z|_m^2)        s = E |g|_m^2, over some 1 / (1 - gamma lambda) steps

    so without a trace the prediction itself moves by eta delta. delta' is delta, at most `clip` times its root mean
    square over the last steps; `normalize` divides it by its mean size too, for a policy, whose scores have no unit.
    All means are corrected for their beginning at zero, but that of delta^2, which begins at one.

    Args:
        params: the parameters.
        lr: eta, the share; the paper has 0.5 for values and 0.05 for policies.
        beta: of the mean of g^2.
        clip: largest error, in root mean squares.
        beta_error: of the means of delta^2 and |delta|.
        normalize: divide by the mean of |delta|.
    """

    EPSILON = 1e-8

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: Annotated[float, Range(0.0, 1e3)] = 0.5,
        beta: Share = 0.999,
        clip: Annotated[float, Range(0.0, 1e6, above=True)] = 20.0,
        beta_error: Share = 0.9998,
        normalize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "beta": beta, "clip": clip, "beta_error": beta_error, "normalize": normalize}
        super().__init__(params, defaults)

    @torch.no_grad()
    def scales(self, streamed: Streamed, workers: Workers) -> Tensor:
        group, state = self.param_groups[0], self.state[self.param_groups[0]["params"][0]]
        error_R, like = streamed.error_R, streamed.error_R
        if "steps" not in state:
            state |= {
                name: torch.zeros((), device=like.device, dtype=like.dtype) for name in ("steps", "sigma", "size")
            }
            state["square"] = torch.ones_like(state["sigma"])
            for p in group["params"]:
                self.state[p]["squares"] = torch.zeros_like(p)
        state["steps"] += 1
        seen = streamed.slope_RP.square().mean(0)
        sizes = torch.stack([error_R.square().mean(), error_R.abs().mean()])
        workers.mean_([seen, sizes])
        squares = [self.state[p]["squares"] for p in group["params"]]
        torch._foreach_lerp_(squares, streamed.split(seen), 1.0 - group["beta"])
        mean_P = streamed.flat(squares) / (1.0 - group["beta"] ** state["steps"])
        self.metric_P = mean_P.sqrt() + self.EPSILON
        slope_R, trace_R = ((x.square() / self.metric_P).sum(1) for x in (streamed.slope_RP, streamed.trace_RP))
        decay = min(streamed.decay, 1.0 - 1e-4)
        slope = slope_R.mean()
        workers.mean_([slope])
        state["sigma"].lerp_(slope, 1.0 - decay)
        sigma = state["sigma"] / (1.0 - decay ** state["steps"])
        state["square"].lerp_(sizes[0], 1.0 - group["beta_error"])
        weight = 1.0 - group["beta_error"] ** state["steps"]
        most = group["clip"] * (state["square"] / weight).sqrt()
        clipped_R = error_R.clamp(-most, most)
        scale_R = torch.where(error_R == 0, torch.zeros_like(error_R), clipped_R / error_R)
        if group["normalize"]:
            size = clipped_R.abs().mean()
            workers.mean_([size])
            state["size"].lerp_(size, 1.0 - group["beta_error"])
            scale_R = scale_R / (state["size"] / weight).clamp(min=1e-12)
        return scale_R / (sigma * trace_R).sqrt().clamp(min=self.EPSILON)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """theta -= eta gradient / m."""
        for group in self.param_groups:
            start = 0
            for p in group["params"]:
                metric = self.metric_P[start : start + p.numel()].view_as(p)
                start += p.numel()
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad / metric)
