"""Schedule-free learning: an average of the iterates in place of a falling learning rate.

Defazio, Yang, Mehta, Mishchenko, Khaled & Cutkosky 2024, *The Road Less Scheduled* (NeurIPS 2024, arXiv 2405.15682),
eqs. 3 to 5. The steps are those of its authors' package, `schedulefree`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lifelong.agent.errors import ConfigError, optional
from lifelong.agent.optimizers.base import Averaging
from lifelong.envs.options import Range, Steps, Weight

_Share = Annotated[float, Range(0.0, 1.0 - 1e-9, above=True)]


class ScheduleFree(Averaging):
    """y = (1 - beta) z + beta x; z' = z - lr g(y); x' = (1 - c) x + c z', c the weight of the step among all so far.

    The policy acts and learns at y, and is evaluated at x. Weights of steps are k^r times the largest learning rate so
    far, squared.

    Args:
        params: the parameters.
        base: g is divided by the root of its mean square, corrected for its beginning, as in Adam (`adamw`), or not
            (`sgd`).
        lr: learning rate; that of `sgd` is larger, 1 and more.
        beta: share of the average in where gradients are taken.
        beta2: of the mean square (`adamw`).
        weight_decay: of y, added to the step in z.
        warmup_steps: updates over which the learning rate rises from 0.
        r: power of the number of the step in its weight; above 0 the average forgets its beginning sooner.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        base: Literal["adamw", "sgd"] = "adamw",
        lr: Annotated[float, Range(0.0, 1e3)] = 2.5e-3,
        beta: _Share = 0.9,
        beta2: _Share = 0.999,
        weight_decay: Weight = 0.0,
        warmup_steps: Steps = 0,
        r: Annotated[float, Range(0.0, 100.0)] = 0.0,
    ) -> None:
        package = optional("schedulefree", "optimizer schedule_free", "schedule_free", ConfigError)
        shared = {"lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps, "r": r, "foreach": False}
        self.base = base
        parameters = list(params)
        super().__init__(parameters, {})
        if base == "adamw":
            self.steps = package.AdamWScheduleFree(parameters, betas=(beta, beta2), **shared)
        else:
            self.steps = package.SGDScheduleFree(parameters, momentum=beta, **shared)
        self.steps.train()
        self.state, self.param_groups = self.steps.state, self.steps.param_groups

    def averages(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for group in self.param_groups:
            beta = group["betas"][0] if self.base == "adamw" else group["momentum"]
            for y in group["params"]:
                z = self.state.get(y, {}).get("z")
                if z is not None:
                    yield y, y.lerp(z, 1 - 1 / beta)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; gradients are left as they are."""
        held = [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, gradient in held:
            parameter.grad = gradient.clone()
        self.steps.step()
        for parameter, gradient in held:
            parameter.grad = gradient

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(saved)
        self.steps.state, self.steps.param_groups = self.state, self.param_groups
