"""Weight clipping (Elsayed et al. 2024, "Weight Clipping for Deep Continual and Reinforcement Learning")."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch

from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.initial import initial_bounds, weights_of
from lifelong.agent.strategies.planned import HookCalls, Update
from lifelong.envs.options import Range
from lifelong.kernels import hooks


class WeightClipping(Strategy):
    """theta <- clip(theta, -kappa b, kappa b) after every update, b the bound of the initialisation (algorithm 1).

    A bound per tensor keeps weights where gradients are large and Lipschitz constants small, without pulling those
    inside it. What sets how long a unit remembers (biases and element-wise weights of the cell) is exempt: the bound of
    a forget gate's bias would be one of the time constants, which the paper's feed-forward networks do not have. The
    carry stays that of the parameters that produced it, as after any step of the optimiser.

    Args:
        kappa: the bound in units of that of the initialisation (see `initial_bounds`).
        recurrence: clip also what sets how long a unit remembers.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(self, *, kappa: Annotated[float, Range(0.0, 1e9, above=True)] = 3.0, recurrence: bool = False) -> None:
        self.kappa, self.recurrence = kappa, recurrence

    def setup(self, ctx: Context, seed: int) -> None:
        bounds = initial_bounds(ctx.policy, seed)
        chosen = weights_of(ctx.policy, self.recurrence)
        self.parameters = [(parameter, self.kappa * bounds[name]) for name, parameter in chosen.items()]

    @torch.no_grad()
    def after_update(self, ctx: Context) -> None:
        for parameter, bound in self.parameters:
            parameter.clamp_(-bound, bound)

    def calls(self, update: Update) -> HookCalls:
        params, bounds = zip(*self.parameters, strict=True)
        return {"after_update": [hooks.bound_call([p.detach() for p in params], bounds, update.watched)]}

    def report(self) -> dict[str, float]:
        """Share of the weights that lie on their bound."""
        on_it = sum(int((parameter.detach().abs() >= bound).sum()) for parameter, bound in self.parameters)
        return {"clipped": on_it / sum(parameter.numel() for parameter, _ in self.parameters)}
