"""Hare and Tortoise: fast weights that learn, slow ones that follow, and the fast ones put back to them now and then.

Lee, Cho, Kim et al. 2024, *Slow and Steady Wins the Race: Maintaining Plasticity with Hare and Tortoise Networks*
(ICML, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import Count, Range


class HareTortoise(Strategy):
    """After every update slow <- momentum slow + (1 - momentum) fast; every `period` updates fast <- slow.

    The hare is the policy: it acts and learns. A jump back to the tortoise moves all parameters, but no unit becomes
    another one, so memory and carry stay: the carry is the derivative of the memory by the parameters that made it, and
    a move by a constant does not change it. The optimiser's moments stay, too.

    Args:
        momentum: of the slow weights.
        period: updates from one jump to the next.
        evaluate: whose performance is evaluated.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(
        self,
        *,
        momentum: Annotated[float, Range(0.0, 1.0 - 1e-9)] = 0.999,
        period: Count = 1000,
        evaluate: Literal["hare", "tortoise"] = "hare",
    ) -> None:
        self.momentum, self.period, self.evaluate = momentum, period, evaluate
        self.updates = 0

    def setup(self, ctx: Context, seed: int) -> None:
        self.parameters = dict(ctx.policy.named_parameters())
        self.slow = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def after_update(self, ctx: Context) -> None:
        self.updates += 1
        for name, parameter in self.parameters.items():
            self.slow[name].lerp_(parameter, 1 - self.momentum)
            if self.updates % self.period == 0:
                parameter.copy_(self.slow[name])

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """What begins anew begins in both."""
        for name, mask in entries.items():
            self.slow[name] = torch.where(mask, self.parameters[name].detach(), self.slow[name])

    @contextmanager
    def evaluation_view(self, ctx: Context, task: int) -> Iterator[None]:
        if self.evaluate == "hare":
            yield
            return
        fast = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        try:
            self._put(self.slow)
            yield
        finally:
            self._put(fast)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def report(self) -> dict[str, float]:
        """How far the hare is ahead, root mean square, and its jumps back."""
        ahead = sum(float((p.detach() - self.slow[name]).square().sum()) for name, p in self.parameters.items())
        count = sum(p.numel() for p in self.parameters.values())
        return {"ahead": (ahead / count) ** 0.5, "jumps": float(self.updates // self.period)}

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow, "updates": self.updates}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.slow = {n: grown(x, self.parameters[n].detach()).clone() for n, x in saved["slow"].items()}
        self.updates = saved["updates"]
