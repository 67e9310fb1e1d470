"""Shrink and perturb (Ash & Adams 2020, "On Warm-Starting Neural Network Training", NeurIPS, section 4)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.initial import initial_scales, weights_of
from lifelong.envs.options import Share, Weight


class ShrinkPerturb(Strategy):
    """theta <- (1 - shrink) theta + noise * s * N(0, 1), s the root mean square of the tensor's initialisation.

    After every update, as in the continual form (Dohare et al. 2024, Nature, methods), or once at every boundary, as in
    the paper. Without a gradient a weight settles, after every update, at a deviation of noise / sqrt(2 shrink) times
    the initial one. The memory of a recurrent agent stays, and its carry is that of the parameters that produced it, as
    after any step of the optimiser. What sets how long a unit remembers (biases and element-wise weights of the cell)
    is exempt: shrinking a forget gate's bias shortens the memory, which the paper's feed-forward networks do not have.

    Args:
        shrink: share that is taken away, of every weight.
        noise: size of the noise relative to the initialisation.
        at: after every `update`, or at every `boundary`, which then must be given (the paper has 0.4 for `shrink`).
        recurrence: shrink and perturb also what sets how long a unit remembers.
    """

    data_parallel: ClassVar[str] = "equal"
    clock_option: ClassVar[str] = ""

    def __init__(
        self,
        *,
        shrink: Share = 1e-4,
        noise: Weight = 1e-3,
        at: Literal["update", "boundary"] = "update",
        recurrence: bool = False,
    ) -> None:
        self.shrink, self.noise, self.at, self.recurrence = shrink, noise, at, recurrence
        self.needs_boundaries = at == "boundary"

    def setup(self, ctx: Context, seed: int) -> None:
        self.generator = torch.Generator(ctx.device).manual_seed(seed)
        scales = initial_scales(ctx.policy, seed)
        self.parameters = [(p, scales[name]) for name, p in weights_of(ctx.policy, self.recurrence).items()]

    @torch.no_grad()
    def apply(self) -> None:
        """Shrink and perturb once."""
        for parameter, scale in self.parameters:
            parameter.mul_(1 - self.shrink)
            if scale:
                draw = torch.empty_like(parameter).normal_(generator=self.generator)
                parameter.add_(draw, alpha=self.noise * scale)

    def after_update(self, ctx: Context) -> None:
        if self.at == "update":
            self.apply()

    def on_task_start(self, ctx: Context) -> None:
        if self.at == "boundary" and ctx.segment > 0:
            self.apply()

    def report(self) -> dict[str, float]:
        """Size of the weights relative to how they began."""
        now = sum(float(parameter.detach().square().sum()) for parameter, _ in self.parameters)
        initially = sum(scale**2 * parameter.numel() for parameter, scale in self.parameters)
        return {"relative_norm": (now / max(initially, 1e-12)) ** 0.5}

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.generator.set_state(saved["generator"])
