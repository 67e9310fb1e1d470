"""CPR: calibrated partial resets.

*Calibrated Partial Resets* (arXiv 2607.24996), with the utility and the defaults of the authors' program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.initial import Redrawing, weights_of
from lifelong.agent.strategies.units import layers_of, spread
from lifelong.envs.options import Count, Range, Share, Weight


class CPR(Redrawing):
    """Every `period` updates each unit goes back towards its initialisation by a share that falls with its utility.

        s_i = mean |g_in| / mean over the layer    u_i <- decay u_i + (1 - decay) s_i
        p_i = rate min(1, 2 sigmoid(-sharpness (u_i - threshold)))
        w_in <- (1 - p_i) w_in + p_i fresh         w_out <- (1 - p_i) w_out

    g_in is the gradient of the weights that a unit hears through, so a unit that learns as much as the mean of its
    layer keeps nearly all of itself. Then u begins at 1 again. Biases stay, and so do element-wise weights of a cell,
    both of which set how long a unit remembers. No unit becomes another one: memory, carry and the optimiser's moments
    stay, as after any small move, and nobody is told of a reset.

    Args:
        rate: share that a unit without any gradient loses.
        sharpness: how fast the share falls with the utility.
        threshold: utility up to which the whole `rate` is lost.
        decay: of the running mean of the utility.
        period: updates from one reset to the next.
    """

    def __init__(
        self,
        *,
        rate: Share = 0.015,
        sharpness: Weight = 16.0,
        threshold: Weight = 1.0,
        decay: Annotated[float, Range(0.0, 1.0 - 1e-9)] = 0.99,
        period: Count = 1000,
    ) -> None:
        self.rate, self.sharpness, self.threshold = rate, sharpness, threshold
        self.decay, self.period = decay, period
        self.updates, self.resets, self.lost = 0, 0, 0.0

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.layers = layers_of(ctx.policy)
        elementwise = {f"cell.{name}" for name in ctx.policy.cell.elementwise_parameters()}
        matrices = {n for n, p in weights_of(ctx.policy, recurrence=True).items() if p.dim() > 1} - elementwise
        self.heard = {layer.name: [e for e in layer.incoming if e.parameter in matrices] for layer in self.layers}
        self.utility = {layer.name: torch.ones(layer.size, device=ctx.device) for layer in self.layers}

    @torch.no_grad()
    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        for layer in self.layers:
            parts = [part for part in self.heard[layer.name] if part.parameter in gradients]
            if not parts:
                continue
            rows = [gradients[part.parameter].movedim(part.dim, 0).flatten(1).abs() for part in parts]
            sums = torch.stack([r.sum(1)[part.index].sum(1) for r, part in zip(rows, parts, strict=True)]).sum(0)
            counts = sum(r.shape[1] * part.index.shape[1] for r, part in zip(rows, parts, strict=True))
            mean_N = sums / counts
            self.utility[layer.name].lerp_(mean_N / (mean_N.mean() + 1e-8), 1 - self.decay)

    @torch.no_grad()
    def after_update(self, ctx: Context) -> None:
        self.updates += 1
        if self.updates % self.period:
            return
        fresh = ctx.policy.redrawn(self.generator)
        shares = {layer.name: self.share(self.utility[layer.name]) for layer in self.layers}
        for layer in self.layers:
            for part in self.heard[layer.name]:
                parameter = ctx.policy.get_parameter(part.parameter)
                parameter.lerp_(fresh[part.parameter], spread(shares[layer.name], part, parameter))
        for layer in self.layers:  # after all have moved: some read each other
            for part in layer.outgoing:
                parameter = ctx.policy.get_parameter(part.parameter)
                parameter.mul_(1 - spread(shares[layer.name], part, parameter))
            self.utility[layer.name].fill_(1.0)
        self.resets += 1
        self.lost = float(torch.cat(list(shares.values())).mean())

    def share(self, utility_N: Tensor) -> Tensor:
        """p [N]."""
        return self.rate * (2 * torch.sigmoid(-self.sharpness * (utility_N - self.threshold))).clamp(max=1.0)

    def report(self) -> dict[str, float]:
        """Resets so far, and the mean share that units lost at the last one."""
        return {"resets": float(self.resets), "lost": self.lost}

    def state_dict(self) -> dict[str, Any]:
        held = {"utility": self.utility, "updates": self.updates, "resets": self.resets, "lost": self.lost}
        return {**super().state_dict(), **held}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        for name, utility in saved["utility"].items():
            self.utility[name].copy_(utility)
        self.updates, self.resets, self.lost = saved["updates"], saved["resets"], saved["lost"]
