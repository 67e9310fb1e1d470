"""Refresh learning: before every step the policy unlearns a little of what it is about to learn.

Wang et al. 2024, *A Unified and General Framework for Continual Learning* (ICLR; arXiv 2403.13249), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import Range, Weight
from lifelong.replay.chunk import Chunk


class Refresh(Strategy):
    """Before every step theta <- theta + move: up the loss L of the live copies,

        move = rate |theta| (g / |g| + noise xi / sqrt(n)) / (1 + importance F / mean F)    g = dL/dtheta, xi ~ N(0, 1)

    of every parameter tensor (n numbers) by itself, and the step is then made with the gradient there. F is a running
    mean of the squared gradients of the steps, so nothing has to be known of tasks; what matters is unlearned less.

    The move is part of the realised step: strategies behind this one in the list project it or count it as any other.
    Its own gradient starts from the memory as a constant; that of the step has its carry, as ever.

    Args:
        rate: size of the move, relative to the norm of the tensor.
        noise: relative to the move.
        importance: how much F damps it; 0: not at all.
        decay: of F, once a step.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(
        self,
        *,
        rate: Annotated[float, Range(0.0, 1.0)] = 1e-5,
        noise: Weight = 1e-3,
        importance: Weight = 1.0,
        decay: Annotated[float, Range(0.0, 1.0 - 1e-9)] = 0.99,
    ) -> None:
        self.rate, self.noise, self.importance, self.decay = rate, noise, importance, decay
        self.before: dict[str, Tensor] = {}  # the parameters before the move, while the gradient is taken
        self.move: dict[str, Tensor] = {}
        self.rise: Tensor | None = None

    def setup(self, ctx: Context, seed: int) -> None:
        self.parameters = dict(ctx.policy.named_parameters())
        self.generator = torch.Generator(device=ctx.device).manual_seed(seed)
        self.fisher = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        live = ctx.copies if ctx.rows is None else len(ctx.rows)
        now = chunk if chunk.copies == live else chunk.select(torch.arange(live, device=chunk.reward.device))
        gradients = self._uphill(ctx, now)
        with torch.no_grad():
            self.before = {name: p.detach().clone() for name, p in self.parameters.items()}
            self.move = {name: self._moved(name, gradient) for name, gradient in gradients.items()}
            self.rise = sum((self.move[n] * g).sum() for n, g in gradients.items())  # type: ignore[assignment]
            for name, move in self.move.items():
                self.parameters[name].add_(move)
        return replace(chunk)  # what acting computed belongs to other parameters

    def _uphill(self, ctx: Context, now: Chunk) -> dict[str, Tensor]:
        """The gradient of the loss, of all workers."""
        with torch.no_grad():
            prepared = ctx.objective.prepare(now)
        loss, _ = ctx.objective.loss(ctx.policy.sequence(now, now.state), now, prepared)
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(self.parameters, found, strict=True) if g is not None}
        ctx.workers.mean_(list(gradients.values()))
        return gradients

    def _moved(self, name: str, gradient: Tensor) -> Tensor:
        direction = gradient / gradient.norm().clamp(min=1e-30)
        xi = torch.randn(gradient.shape, generator=self.generator, device=gradient.device, dtype=gradient.dtype)
        direction = direction + self.noise * xi / gradient.numel() ** 0.5
        fisher = self.fisher[name]
        damping = 1 + self.importance * fisher / fisher.mean().clamp(min=1e-30)
        return self.rate * self.before[name].norm() * direction / damping

    @torch.no_grad()
    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        for name, value in self.before.items():
            self.parameters[name].copy_(value)
        self.before = {}
        for name, gradient in gradients.items():
            self.fisher[name].lerp_(gradient.square(), 1 - self.decay)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        for name, move in self.move.items():
            deltas[name].add_(move)

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        for name, mask in entries.items():
            self.fisher[name].masked_fill_(mask, 0.0)

    def report(self) -> dict[str, float]:
        return {"rise": 0.0 if self.rise is None else float(self.rise)}

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "rise": self.rise, "generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.fisher = {name: grown(f, torch.zeros_like(self.parameters[name])) for name, f in saved["fisher"].items()}
        self.rise = saved["rise"]
        self.generator.set_state(saved["generator"].cpu())
