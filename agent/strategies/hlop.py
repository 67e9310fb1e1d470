"""HLOP: Hebbian learning of the subspace that later tasks leave alone (Xiao, Meng, Zhang, He, Lin, ICLR 2024, "Hebbian
learning based orthogonal projection for continual learning of spiking neural networks", arXiv 2402.11984, eqs. 6-9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.agent.parallel import Workers
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.projection import BasisProjection
from lifelong.envs.options import Count, Range


class HLOP(BasisProjection):
    """Learns an orthonormal basis of what a layer reads while the task is learned, with lateral weights H:

        y = H x,  x' = H^T y,  H <- H + rate * mean y (x - x')^T

    Hebbian (y x^T) and anti-Hebbian (-y x'^T), Oja's subspace rule, whose rest are the leading principal directions.
    x' counts the frozen rows of old tasks, too, so the new ones become orthogonal to them. At a boundary the new rows
    are merged into the frozen ones, which never change again and along which no update is let through; then new ones
    begin at random. Nothing looks back and no fresh experience is asked for: what is protected is what was read while
    the task was learned, with a memory of about 1 / rate looks.

    The mean over the steps of a chunk enters by the second moments, divided by their trace: `rate` means the same for
    every layer, where the paper has one by hand for each. Rows are orthonormalised once, when they are frozen, and
    those without energy are not kept.

    Args:
        rate: of H a step of the rule, where the inputs have energy 1.
        iterations: steps of the rule a look.
        momentum: of these steps: V <- momentum V + (1 - momentum) D.
        period: look at every so many chunks, each time at some of the copies.
        threshold: of the energy that the new rows hold, the share that the ones which are kept must have.
        per_task: share of a layer's input space that a task has rows for.
        options: see `Projection`.
    """

    #: entries of a step of the rule are not larger
    CLIP = 10.0
    #: steps of a look, at most about twice as many
    STEPS = 256
    #: of the energy of the rows from one look to the next
    KEEP = 0.95

    def __init__(
        self,
        *,
        rate: Annotated[float, Range(0.0, 10.0, above=True)] = 1.0,
        iterations: Count = 5,
        momentum: Annotated[float, Range(0.0, 0.999)] = 0.9,
        period: Count = 5,
        threshold: Annotated[float, Range(0.0, 1.0, above=True)] = 0.999,
        per_task: Annotated[float, Range(0.0, 1.0, above=True)] = 0.3,
        **options: Any,
    ) -> None:
        super().__init__(per_task=per_task, **options)
        if rate <= 0 or not 0 <= momentum < 1 or not 0 < threshold <= 1:
            raise ValueError(
                f"rate, momentum and threshold are {rate}, {momentum} and {threshold}; they must lie above 0, in "
                "[0, 1) and in (0, 1]"
            )
        self.rate, self.iterations, self.momentum = rate, iterations, momentum
        self.period, self.threshold = period, threshold
        #: tap -> rows of the task in training, how they move, and the second moments of their answers y
        self.rows: dict[str, Tensor] = {}
        self.velocity: dict[str, Tensor] = {}
        self.energy: dict[str, Tensor] = {}
        self.residual: dict[str, Tensor] = {}
        self.looks = 0

    def fresh_sequences(self, copies: int) -> int:
        return super().fresh_sequences(copies) if self.elementwise == "importance" else 0

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        self.looks += 1
        if (self.looks - 1) % self.period:
            return
        seen, steps = self.some(ctx, experience)
        found = self.taps.vectors(seen)
        energy = {tap: x_MN.square().sum() for tap, x_MN in found.items()}
        # where there are more steps than a layer has inputs their second moments are the shorter way
        dense = {tap: x_MN.T @ x_MN for tap, x_MN in found.items() if x_MN.shape[1] <= steps}
        ctx.workers.sum_([*energy.values(), *dense.values()])
        for tap, x_MN in found.items():
            scale = energy[tap].clamp(min=1e-12)
            self.learn(tap, x_MN.shape[1], partial(_times, ctx.workers, scale, dense.get(tap), x_MN))

    def some(self, ctx: Context, experience: Experience) -> tuple[Experience, int]:
        """What a look looks at, about `STEPS` steps, and how many these are: some copies, others the next time."""
        stride = max(1, ctx.copies * ctx.steps // self.STEPS)
        if stride == 1:
            return experience, ctx.copies * ctx.steps
        look = (self.looks - 1) // self.period
        copies = torch.arange(look % stride, experience.chunk.copies, stride, device=ctx.device)
        state_TBS = experience.state_TBS.index_select(1, copies)
        seen = replace(experience, chunk=experience.chunk.select(copies), state_TBS=state_TBS)
        return seen, ctx.copies * ctx.steps // stride

    def learn(self, tap: str, width: int, times: Callable[[Tensor], Tensor]) -> None:
        """One look: `iterations` steps of the rule. `times` multiplies rows by second moments with trace 1."""
        frozen_nk = self.basis(tap, width)
        if tap not in self.rows:
            self._begin(tap, frozen_nk)
        rows, velocity = self.rows[tap], self.velocity[tap]
        rank, every = frozen_nk.shape[1], torch.cat([frozen_nk.T, rows])
        moving = every[rank:]
        for _ in range(self.iterations):
            answer = times(moving)  # mean y x^T
            step = (answer - (answer @ every.T) @ every).clamp(-self.CLIP, self.CLIP)
            velocity.mul_(self.momentum).add_(step, alpha=1 - self.momentum)
            moving.add_(velocity, alpha=self.rate)
        rows.copy_(moving)
        answers = times(every) @ every.T  # mean y y^T
        self.energy[tap] = self.KEEP * self.energy[tap] + (1 - self.KEEP) * answers[rank:, rank:]
        self.residual[tap] = 1 - answers.trace()

    def _begin(self, tap: str, frozen_nk: Tensor) -> None:
        """New rows at random, orthonormal to each other and to the frozen ones; as many as the budget has room for."""
        width, rank = frozen_nk.shape
        count = max(0, self.most(tap, width) - rank)
        drawn = torch.randn(width, count, generator=self.generator).to(self.device)
        self.rows[tap] = _orthonormal(frozen_nk, drawn).T.contiguous()
        self.velocity[tap] = torch.zeros_like(self.rows[tap])
        self.energy[tap] = torch.zeros(count, count, device=self.device)

    @torch.no_grad()
    def consolidate(self, ctx: Context, source: Source) -> None:
        """Freeze the rows of the task that ended."""
        for tap, rows in self.rows.items():
            frozen_nk = self.basis(tap, rows.shape[1])
            energy, axes = torch.linalg.eigh(self.energy[tap].double())
            energy = energy.flip(0).clamp(min=0.0)
            count = int((energy.cumsum(0) < self.threshold * energy.sum()).sum()) + 1
            leading = rows.T.double() @ axes.flip(1)[:, : count if float(energy.sum()) > 0 else 0]
            self.protected[tap] = torch.cat([frozen_nk, _orthonormal(frozen_nk, leading)], 1)
            self.rooms[tap] = self.room_of(tap)
        self.rows, self.velocity, self.energy = {}, {}, {}
        if self.held.names:
            self.hold(ctx, source(self.chunks))

    def report(self) -> dict[str, float]:
        """And of every layer the share of the energy that neither frozen nor new rows hold."""
        return {**super().report(), **{f"residual/{tap}": float(share) for tap, share in self.residual.items()}}

    def state_dict(self) -> dict[str, Any]:
        rows = {"rows": self.rows, "velocity": self.velocity, "energy": self.energy, "residual": self.residual}
        return {**super().state_dict(), **rows, "looks": self.looks, "generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        taps = self.taps.weights
        for name in ("rows", "velocity"):
            kept = {tap: self.widened(tap, x.T).T.contiguous() for tap, x in saved[name].items() if tap in taps}
            setattr(self, name, kept)
        self.energy = {tap: x.to(self.device) for tap, x in saved["energy"].items() if tap in taps}
        self.residual, self.looks = dict(saved["residual"]), saved["looks"]
        self.generator.set_state(saved["generator"].cpu())


def _times(workers: Workers, scale: Tensor, dense_nn: Tensor | None, x_MN: Tensor, rows_KN: Tensor) -> Tensor:
    """Rows times the second moments over all workers' steps, divided by their trace."""
    if dense_nn is not None:
        return rows_KN @ dense_nn / scale
    product = (rows_KN @ x_MN.T) @ x_MN
    workers.sum_([product])
    return product / scale


def _orthonormal(frozen_nk: Tensor, new_nj: Tensor) -> Tensor:
    """The new columns, orthonormal to each other and to the frozen ones, which are not touched."""
    frozen, new = frozen_nk.double(), new_nj.double()
    for _ in range(2):
        new, _ = torch.linalg.qr(new - frozen @ (frozen.T @ new))
    return new.to(frozen_nk.dtype)
