"""Synaptic intelligence: importance along the path that the parameters really took.

Zenke, Poole & Ganguli 2017 (arXiv 1703.04200, eqs. 3-5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import ImportancePenalty, Normalize, Tasks
from lifelong.agent.strategies.planned import HookCalls, Update
from lifelong.envs.options import Range, Share, Steps, Weight
from lifelong.kernels import hooks


class SI(ImportancePenalty):
    """Adds strength/2 * sum_i I_i (theta_i - anchor_i)^2 to the loss.

    While a task is learned every parameter collects omega <- omega - g * delta: g is the gradient of the loss without
    this penalty, whose own is known in closed form, and delta the step that was really made, after clipping, the
    optimiser and every strategy that changes it. To first order the sum of omega over the parameters is by how much the
    loss fell. At a boundary (or every `every` steps) I <- decay * I + max(omega, 0) / ((theta - start)^2 + damping).

    Nothing is sampled and nothing looks back, so the gradient has whatever history the engine gives it: under `rtrl`
    all of it. Re-initialised units (`after_update` of others) are no steps and collect nothing.

    Args:
        strength: twice the paper's c.
        damping: xi; keeps parameters that hardly moved from becoming important.
        decay: of what was there before; 1 keeps all tasks alike.
        normalize: `none`: as it is; `all` or `tensor`: see `ewc`.
        tasks: whether I is the `sum` over the tasks or the `mean`.
        critic: whether the critic is held, too.
        every: consolidate every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(
        self,
        *,
        strength: Weight = 1.0,
        damping: Annotated[float, Range(0.0, 1e9, above=True)] = 1e-3,
        decay: Share = 1.0,
        normalize: Normalize = "none",
        tasks: Tasks = "sum",
        critic: bool = False,
        every: Steps = 0,
    ) -> None:
        super().__init__(strength, critic, every, decay, normalize, tasks)
        if damping <= 0:
            raise ValueError(f"damping is {damping}; it must be above 0")
        self.damping = damping
        self.start: dict[str, Tensor] = {}  # the parameters when the path began
        self.gradient: dict[str, Tensor] = {}
        self.deltas: Mapping[str, Tensor] = {}

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.omega = self.zeros()

    @torch.no_grad()
    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        self.start = self.start or self.now()
        self.gradient = {name: gradients[name].clone() for name in self.parameters if name in gradients}
        for name, gradient in self.gradient.items():
            if name in self.importance:
                gap = self.parameters[name] - self.anchor[name]
                gradient -= self.strength * self.importance[name] * gap

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        self.deltas = deltas  # other strategies change them in place until they are applied

    @torch.no_grad()
    def after_update(self, ctx: Context) -> None:
        for name, gradient in self.gradient.items():
            self.omega[name] -= gradient * self.deltas[name]

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """Their path begins here, too."""
        super().on_reset(ctx, entries)
        for name in entries.keys() & self.start.keys():
            self.omega[name].masked_fill_(entries[name], 0.0)
            self.start[name] = torch.where(entries[name], self.parameters[name].detach(), self.start[name])

    def calls(self, update: Update) -> HookCalls:
        self.start = self.start or self.now()
        params, grads = ([each[name] for name in self.parameters] for each in update[:2])
        slopes, before = ([torch.empty_like(p) for p in params] for _ in range(2))
        omegas = [self.omega[name] for name in self.parameters]
        held = self.held() if self.importance else None
        return {
            **super().calls(update),
            "transform_gradients": [hooks.path_begin_call(held, params, grads, slopes, before)],
            "transform_update": [hooks.path_end_call(params, slopes, before, omegas, update.watched)],
        }

    def made_for(self) -> tuple[int | float, ...]:
        return *super().made_for(), *[omega.data_ptr() for omega in self.omega.values()]

    @torch.no_grad()
    def consolidate(self, ctx: Context, source: Source) -> None:
        if not self.start:  # nothing has been learned yet
            return
        moved = {name: (self.parameters[name] - start).square() for name, start in self.start.items()}
        self.accumulate({n: w.clamp(min=0) / (moved[n] + self.damping) for n, w in self.omega.items()})
        self.start, self.omega = self.now(), self.zeros()

    def report(self) -> dict[str, float]:
        return {**super().report(), "path_integral": float(sum(w.sum() for w in self.omega.values()))}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "omega": self.omega, "start": self.start}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.omega = self.grown(saved["omega"])
        self.start = {n: grown(p, self.parameters[n].detach()) for n, p in saved["start"].items()}
