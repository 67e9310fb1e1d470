"""Dynamic sparse training with a mask per task (Yildirim et al. 2024, "Continual Learning with Dynamic Sparse
Training")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lifelong.agent.errors import choice
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.isolation import Masked
from lifelong.envs.options import Count, Range, Share, Steps


def erdos_renyi_kernel(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Densities epsilon * (sum of dimensions) / (product of dimensions), layers above 1 dense, with epsilon so that all
    layers together have `density` (Mocanu et al. 2018; with kernels Evci et al. 2020, section 3.1)."""
    dense: set[str] = set()
    while True:
        raw = {n: sum(shape) / math.prod(shape) for n, shape in shapes.items() if n not in dense}
        room = density * sum(map(math.prod, shapes.values())) - sum(math.prod(shapes[n]) for n in dense)
        epsilon = room / sum(raw[n] * math.prod(shapes[n]) for n in raw) if raw else 0.0
        above = {n for n, x in raw.items() if epsilon * x > 1}
        if not above:
            return {n: 1.0 if n in dense else epsilon * raw[n] for n in shapes}
        dense |= above


class DST(Masked):
    """Every task trains a sparse network of its own, whose connections move while it trains; they are frozen when it
    ends.

    A task begins with a random mask and with new values in it, larger by density^-1/2, so that sums have the variance
    of a dense layer; but for the entries that old tasks have: these it reads as they are. Every `period` chunks the
    smallest of the weights that it may move are dropped in every layer, and as many connections grow among those that
    nobody has, from zero: at random (`set`, Mocanu et al. 2018) or those with the largest gradient (`rigl`, Evci et al.
    2020), which here is the mean over all updates since the last time, as gradients are noisier than in supervised
    learning. So the number of connections of every layer never changes.

    Args:
        density: share of the weights that a task reads, over all layers.
        distribution: `uniform`: the same density in every layer; `erk`: see `erdos_renyi_kernel`.
        growth: `set` or `rigl`.
        fraction: of the movable connections that move each time.
        period: chunks between two times.
        anneal: steps of a task over which `fraction` falls to zero by a cosine; 0: it stays.
        options: see `Masked`.
    """

    def __init__(
        self,
        *,
        density: Annotated[float, Range(0.0, 1.0, above=True)] = 0.2,
        distribution: Literal["uniform", "erk"] = "uniform",
        growth: Literal["set", "rigl"] = "rigl",
        fraction: Share = 0.3,
        period: Count = 100,
        anneal: Steps = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 < density <= 1 or not 0 <= fraction <= 1 or period < 1 or anneal < 0:
            raise ValueError(
                "density must lie in (0, 1], fraction in [0, 1], period must be at least 1, anneal not negative"
            )
        choice("distribution of dst", distribution, ("uniform", "erk"))
        choice("growth of dst", growth, ("set", "rigl"))
        self.density, self.distribution, self.growth = density, distribution, growth
        self.fraction, self.period, self.anneal = fraction, period, anneal
        self.begun = self.chunks = self.moved = 0

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        shapes = {name: tuple(value.shape) for name, value in self.store.items()}
        by_layer = erdos_renyi_kernel(shapes, self.density) if self.distribution == "erk" else {}
        #: connections of every layer
        self.counts = {n: round(by_layer.get(n, self.density) * math.prod(shape)) for n, shape in shapes.items()}
        #: sum of the gradients since connections moved last
        self.gradient = {n: torch.zeros_like(x) for n, x in self.store.items()} if self.growth == "rigl" else {}

    def random_of(self, candidates: Tensor, count: int) -> Tensor:
        """A mask of so many of the candidates, drawn on the host."""
        draw = torch.rand(candidates.shape, generator=self.generator).to(candidates.device)
        return largest(draw, candidates, count)

    def first_mask(self, ctx: Context, task: int) -> dict[str, Tensor]:
        self.begun = ctx.step
        self.restart()
        fresh = ctx.policy.redrawn(self.generator) if len(self.order) > 1 else self.store
        for name, kept in self.store.items():
            density = self.counts[name] / max(1, kept.numel())
            drawn = fresh[name] * max(density, 1e-6) ** -0.5
            self.store[name] = torch.where(self.frozen[name], kept, drawn)
        return {n: self.random_of(torch.ones_like(frozen), self.counts[n]) for n, frozen in self.frozen.items()}

    def restart(self) -> None:
        """Count from zero to the next time."""
        self.chunks = 0
        for gradient in self.gradient.values():
            gradient.zero_()

    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        for name, total in self.gradient.items():
            if name in gradients:
                total += gradients[name]
        super().transform_gradients(ctx, gradients)

    def fraction_at(self, step: int) -> float:
        """Share of the movable connections that move at an environment step (Evci et al. 2020, section 3)."""
        if not self.anneal:
            return self.fraction
        return self.fraction / 2 * (1 + math.cos(math.pi * min(1.0, (step - self.begun) / self.anneal)))

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        if self.now is None:
            return
        self.chunks += 1
        if self.chunks < self.period:
            return
        for name in self.store:
            self.rewire(ctx, name, self.masks[self.now][name], self.fraction_at(ctx.step))
        self.restart()

    def rewire(self, ctx: Context, name: str, mask: Tensor, share: float) -> None:
        """Drop the smallest of a layer's movable connections, and grow as many."""
        movable, candidates = self.movable[name], ~(mask | self.frozen[name])
        count = min(int(share * int(movable.sum())), int(candidates.sum()))
        if not count:
            return
        dropped = largest(-self.parameters[name].detach().abs(), movable, count)
        if self.growth == "set":
            grown = self.random_of(candidates, count)
        else:
            grown = largest(self.gradient[name].abs(), candidates, count)
        self.moved += count
        self.narrow(ctx, name, (mask & ~dropped) | grown)

    def report(self) -> dict[str, float]:
        return {**super().report(), "moved": float(self.moved)}

    def state_dict(self) -> dict[str, Any]:
        counters = {"begun": self.begun, "chunks": self.chunks, "moved": self.moved}
        return {**super().state_dict(), **counters, "gradient": self.gradient}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.begun, self.chunks, self.moved = saved["begun"], saved["chunks"], saved["moved"]
        for name, total in self.gradient.items():
            if name in saved["gradient"]:
                kept = saved["gradient"][name]
                total[tuple(slice(0, size) for size in kept.shape)] = kept.to(total)


def largest(score: Tensor, candidates: Tensor, count: int) -> Tensor:
    """A mask of the `count` candidates with the largest score."""
    chosen = torch.zeros_like(candidates).flatten()
    chosen[score.masked_fill(~candidates, -torch.inf).flatten().topk(count).indices] = True
    return chosen.view_as(candidates)
