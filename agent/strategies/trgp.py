"""TRGP: trust region gradient projection (Lin, Yang, Fan, Zhang, ICLR 2022, arXiv 2202.02931, eqs. 4-9)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.gpm import GPM
from lifelong.envs.options import Count, Share

#: of A^T A, in units of the mean of its diagonal; what is added to that
DAMPING, TINY = 1e-3, 1e-12
#: of a task: tap -> old task -> Q
Scales = dict[str, dict[int, Tensor]]


class TRGP(GPM):
    """GPM, and in a layer that a new task shares with old ones it may scale what these had learned, for itself alone:

        W_t = W + sum_j W S_j (Q_j - I) S_j^T

    S_j is an orthonormal basis of what the layer read on task j, within the span of GPM's M, Q_j a square matrix that
    begins as the identity. At the first update of a new task the old tasks with |G S_j| >= trust |G| are its trust
    region, at most `regions` of them, those that share most first. W moves in the complement of M, as in GPM. Every
    task keeps its own Q, so the task must be known to act.

    The policy's parameters are W_t, so gradients, the carry's too, are those of what acts. The realised step D of W_t
    is projected onto what Q_j can make of it: with A = W S_j, Q_j moves by (A^T A)^-1 A^T D S_j, so W_t by no more than
    D. With plain SGD that is gradient descent on Q_j, preconditioned by A^T A; without it, as the paper has it, the
    step of W_t is A A^T times as large, and under Adam, whose steps do not shrink with the gradient, layers with large
    answers A left the network in one task. When the task changes the parameters jump to those of the other task. S_j
    stays as it was after the first time that task j ended.

    Args:
        trust: smallest share of the gradient's norm that lies in an old task's space for it to be trusted.
        regions: largest number of old tasks whose weights a task scales, in a layer.
        options: see `GPM`.
    """

    #: acting needs to be told of a new task before its first chunk
    clock_option: ClassVar[str] = ""

    def __init__(self, *, trust: Share = 0.5, regions: Count = 2, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= trust <= 1 or regions < 1:
            raise ValueError(f"trust and regions are {trust} and {regions}; they must lie in [0, 1] and be at least 1")
        self.trust, self.regions = trust, regions
        self.moments: dict[str, Tensor] = {}  # of the task that is looked at
        self.needs_boundaries = True
        self.current = -1  # task whose weights the policy has
        self.spaces: dict[str, dict[int, Tensor]] = {}  # tap -> task -> S
        self.plain: dict[str, Tensor] = {}  # tap -> W at the last boundary: W S_j never changes
        self.scales: dict[int, Scales] = {}

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.needs_task_id = True

    def offset(self, tap: str, task: int) -> Tensor | None:
        """W_t - W of a task; None if it scales nothing there."""
        scales = self.scales.get(task, {}).get(tap, {})
        if not scales:
            return None
        plain = self.plain[tap]
        parts = []
        for old, scale in scales.items():
            space = self.spaces[tap][old]
            parts.append(plain @ space @ (scale - torch.eye(len(scale), device=scale.device)) @ space.T)
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def _become(self, task: int) -> None:
        """The policy's parameters are those of `task` from now on."""
        for tap in self.protected:
            before, after = self.offset(tap, self.current), self.offset(tap, task)
            if before is None and after is None:
                continue
            joint = self.taps.joint(tap, self.parameters)
            joint = joint if before is None else joint - before
            self.taps.write(tap, joint if after is None else joint + after, self.parameters)
        self.current = task

    def on_task_start(self, ctx: Context) -> None:
        assert ctx.task is not None  # it is observed
        self._become(ctx.task)

    @contextmanager
    def evaluation_view(self, ctx: Context, task: int) -> Iterator[None]:
        """The weights of `task`."""
        current, before = self.current, {name: p.detach().clone() for name, p in self.parameters.items()}
        self._become(task)
        try:
            yield
        finally:
            self.current = current
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(before[name])

    @torch.no_grad()
    def consolidate(self, ctx: Context, source: Source) -> None:
        task = self.current if ctx.task is None else ctx.task
        moments = self.moments
        moments.clear()
        with self.evaluation_view(ctx, task):  # at a soft border the policy is another task's already
            super().consolidate(ctx, source)
        for tap, moment in moments.items():
            joint, offset = self.taps.joint(tap, self.parameters), self.offset(tap, self.current)
            self.plain[tap] = joint if offset is None else joint - offset
            kept = self.spaces.setdefault(tap, {})
            if task not in kept:
                kept[task] = leading(self.protected[tap], moment, self.threshold_of(tap))

    def protect(self, tap: str, moment_nn: Tensor, count: int) -> Tensor:
        self.moments[tap] = moment_nn
        return super().protect(tap, moment_nn, count)

    @torch.no_grad()
    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        if not self.protected or self.current in self.scales:
            return
        self.scales[self.current] = {
            tap: self._trusted(tap, self.taps.joint(tap, gradients))
            for tap, spaces in self.spaces.items()
            if all(name in gradients for name in self.taps.weights[tap][0]) and set(spaces) != {self.current}
        }

    def _trusted(self, tap: str, gradient_mn: Tensor) -> dict[int, Tensor]:
        norm = gradient_mn.norm().clamp(min=1e-30)
        shares = {old: float((gradient_mn @ space).norm() / norm) for old, space in self.spaces[tap].items()}
        shares.pop(self.current, None)
        best = sorted((old for old in shares if shares[old] >= self.trust), key=lambda old: -shares[old])
        spaces = self.spaces[tap]
        return {old: torch.eye(spaces[old].shape[1], device=self.device) for old in best[: self.regions]}

    def project(self, tap: str, delta_mn: Tensor) -> Tensor:
        moved: list[Tensor] = []
        for old, scale in self.scales.get(self.current, {}).get(tap, {}).items():
            space = self.spaces[tap][old]
            answers = self.plain[tap] @ space  # W S
            metric = answers.T @ answers
            metric.diagonal().add_(DAMPING * metric.diagonal().mean() + TINY)
            step = torch.linalg.solve(metric, answers.T @ delta_mn @ space)
            scale += step
            moved.append(answers @ step @ space.T)
        return super().project(tap, delta_mn) + sum(moved)

    def report(self) -> dict[str, float]:
        """And how many old tasks a layer is scaled on."""
        now = self.scales.get(self.current, {})
        return {**super().report(), **{f"regions/{tap}": float(len(now.get(tap, {}))) for tap in self.protected}}

    def state_dict(self) -> dict[str, Any]:
        own = {"current": self.current, "spaces": self.spaces, "plain": self.plain, "scales": self.scales}
        return {**super().state_dict(), **own}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.current, taps = saved["current"], self.protected
        self.plain = {tap: self.widened(tap, w.T).T.contiguous() for tap, w in saved["plain"].items() if tap in taps}
        self.spaces = {
            tap: {task: self.widened(tap, space) for task, space in spaces.items()}
            for tap, spaces in saved["spaces"].items()
            if tap in taps
        }
        self.scales = {
            task: {tap: {j: q.to(self.device) for j, q in of.items()} for tap, of in scales.items() if tap in taps}
            for task, scales in saved["scales"].items()
        }


def leading(basis_nk: Tensor, moment_nn: Tensor, threshold: float) -> Tensor:
    """An orthonormal basis S, within the span of `basis_nk`, of the leading directions of a task, which hold
    `threshold` of its energy as far as that lies there (Lin et al. 2022, section 3.3)."""
    basis = basis_nk.double()
    energy, axes = torch.linalg.eigh(basis.T @ moment_nn.double() @ basis)
    energy, axes = energy.flip(0).clamp(min=0.0), axes.flip(1)
    count = int((energy.cumsum(0) < threshold * energy.sum()).sum()) + 1
    return (basis @ axes[:, :count]).to(basis_nk.dtype)
