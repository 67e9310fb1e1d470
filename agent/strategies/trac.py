"""TRAC: how far from where the run began, tuned online without a parameter.

Muppidi, Zhang & Yang 2024, *Fast TRAC: A Parameter-Free Optimizer for Lifelong Reinforcement Learning* (NeurIPS,
algorithms 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.planned import HookCalls, Update
from lifelong.kernels import hooks

#: discount factors of the tuners; their outputs are added up
BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
EPSILON = 1e-8
#: terms of a power series, enough for arguments below LARGEST; there a tuner's output is beyond 1e26
TERMS, LARGEST = 320, 9.0


def erfi(x: Tensor) -> Tensor:
    """The imaginary error function 2/sqrt(pi) * integral of exp(t^2) from 0 to x, of float64 with |x| <= 9."""
    n = torch.arange(TERMS, dtype=torch.float64, device=x.device)
    square = x.square().clamp(min=1e-300).unsqueeze(-1)
    terms = torch.exp(n * square.log() - torch.lgamma(n + 1)) / (2 * n + 1)  # x^2n / (n! (2n + 1))
    return 2 / math.sqrt(math.pi) * x * terms.sum(-1)


class Trac(Strategy):
    """Around any optimiser: theta = theta_0 + S * D, D the sum of its steps and theta_0 where the run began.

    S = max(0, sum_j s_j) of six tuners with a discount beta_j each; h = <g, D> says whether it pays to be farther away:

        v_j <- beta_j^2 v_j + h^2        sigma_j <- beta_j sigma_j - h
        s_j = eps / erfi(1 / sqrt 2) * erfi(sigma_j / (sqrt(2 v_j) + eps))

    S begins at 1e-7, grows while the gradients go on agreeing with the way taken, and falls towards 0, which is back to
    the start, when a new task makes them disagree. g is the gradient before it is clipped: clipped ones are as long
    where the loss explodes as elsewhere, and S would go on growing. The step of the optimiser that went before is part
    of D. Moves by others (a reset, clipping) stay as they are; what they re-initialise begins a new D. All parameters
    go together, those that set how long a unit remembers too: S is one number, and where they return to are the time
    constants of the start. Memory and carry stay, as after any step of the optimiser.
    """

    data_parallel: ClassVar[str] = "equal"

    def setup(self, ctx: Context, seed: int) -> None:
        self.path = {name: torch.zeros_like(p) for name, p in ctx.policy.named_parameters()}
        self.betas = torch.tensor(BETAS, dtype=torch.float64, device=ctx.device)
        self.variance, self.sigma = torch.zeros_like(self.betas), torch.full_like(self.betas, EPSILON)
        self.scale = torch.zeros((), dtype=torch.float64, device=ctx.device)
        self.unit = EPSILON / erfi(torch.tensor(0.5, dtype=torch.float64).sqrt()).to(ctx.device)

    @torch.no_grad()
    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        self.along = torch.stack([(g.double() * self.path[name]).sum() for name, g in gradients.items()]).sum()

    @torch.no_grad()
    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        before = self.scale.clone()
        self.scale.copy_(self.tune(self.along))
        for name, delta in deltas.items():
            gone = before.to(delta.dtype) * self.path[name]
            self.path[name] += delta
            delta.copy_(self.scale.to(delta.dtype) * self.path[name] - gone)

    def tune(self, h: Tensor) -> Tensor:
        """S after one more h (float64)."""
        self.variance.mul_(self.betas.square()).add_(h.square())
        self.sigma.mul_(self.betas).sub_(h)
        x = self.sigma / ((2 * self.variance).sqrt() + EPSILON)
        return (self.unit * erfi(x.clamp(-LARGEST, LARGEST))).sum().clamp(min=0.0)

    def calls(self, update: Update) -> HookCalls:
        params, grads = ([each[name] for name in self.path] for each in update[:2])
        paths, before = list(self.path.values()), [torch.empty_like(p) for p in params]
        tuners = hooks.Tuners(EPSILON, float(self.unit), LARGEST, self.betas, self.variance, self.sigma, self.scale)
        along = torch.zeros((), dtype=torch.float64)
        return {
            "transform_gradients": [hooks.trac_begin_call(params, grads, paths, before, along)],
            "transform_update": [hooks.trac_end_call(tuners, params, paths, before, along, update.watched)],
        }

    def made_for(self) -> tuple[int | float, ...]:
        return tuple(tensor.data_ptr() for tensor in (self.variance, self.sigma, self.scale, *self.path.values()))

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        for name, mask in entries.items():
            self.path[name].masked_fill_(mask, 0.0)

    def report(self) -> dict[str, float]:
        """S: 1 is the optimiser without this strategy, 0 is the start."""
        return {"scale": float(self.scale)}

    def state_dict(self) -> dict[str, Any]:
        return {"path": self.path, "variance": self.variance, "sigma": self.sigma, "scale": self.scale}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.path = {name: grown(d, torch.zeros_like(self.path[name])) for name, d in saved["path"].items()}
        for name in ("variance", "sigma", "scale"):
            setattr(self, name, saved[name].to(self.betas, copy=True))
