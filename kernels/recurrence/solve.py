"""All T steps of a recurrence at once: the states are the solution of T equations s_t = r(u_t, m_t s_{t-1}), found by
iterations whose every one is parallel over the steps.

    newton         s <- the solution of the equations linearised at s, s'_t = r(s_{t-1}) + J_t (s'_{t-1} - s_{t-1}): an
                   associative scan. Converges quadratically where it converges; at once for a linear recurrence.
    jacobi         s_t <- r(s_{t-1}) at all steps. Step t is right after t iterations at the latest.
    gauss_seidel   blocks of `BLOCK` steps one after the other, Jacobi inside a block.

Newton: Lim, Zhu, Selfridge & Kasim 2024, "Parallelizing non-linear sequential models over the sequence length" (DEER,
arXiv 2309.12252); Danieli et al. 2025, "ParaRNN". The others: Song, Meng, Liao & Ermon 2021, "Accelerating feedforward
computation via parallel nonlinear equation solving" (arXiv 2002.03629), where the last is "Gauss-Seidel-Jacobi".

The backward pass is that of the recurrence at the solution: a linear recurrence in reverse, exact, through no
iteration. Newton stops when no state changes by more than `TOLERANCE` of the largest, so that what is left is about its
square. The others stop when nothing changes, which makes their states those of the loop bit for bit. What has not
converged in `LIMIT` iterations, or is not finite, is done again by the loop.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.kernels.diag_scan import diag_scan

Kind = Literal["newton", "jacobi", "gauss_seidel"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
LIMIT = {"newton": 16, "jacobi": 64}
BLOCK = 32


class Solver:
    """A way of solving, and what the last call of it took.

    Args:
        kind: see the module.
    """

    #: of the last call, for the log
    TRANSIENT: ClassVar[tuple[str, ...]] = ("iterations", "failed")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        #: how often all steps were evaluated; of Gauss-Seidel the mean over its blocks
        self.iterations = 0.0
        #: whether the loop had to be used
        self.failed = False

    def report(self, like: Tensor) -> dict[str, Tensor]:
        """Scalars for the log, of the type of `like`."""
        taken = {"solver_iterations": self.iterations, "solver_failed": self.failed}
        return {name: like.new_tensor(float(value)) for name, value in taken.items()}


class Solved:
    """A backend's implementation of a recurrence whose forward pass is solved.

    Args:
        impl: the implementation, with `forward`, `backward` and `local`.
        solver: how; it is told what it took.
    """

    def __init__(self, impl: Any, solver: Solver) -> None:
        self.impl, self.solver = impl, solver
        self.backward, self.local = impl.backward, impl.local

    def forward(
        self, u_TBM: Tensor, v_KN: Tensor, state_BS: Tensor, is_init_TB: Tensor, *, keep: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(the parts of the state after each step, [P, T, B, N], what `backward` wants kept if it is to follow)."""
        if u_TBM.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a solver asks after every iteration whether it is done, which no CUDA graph can hold")
        problem = u_TBM, v_KN, state_BS, is_init_TB
        after, kept = (self._blocks if self.solver.kind == "gauss_seidel" else self._iterate)(*problem), None
        if after is None:
            return self.impl.forward(*problem, keep=keep)  # type: ignore[no-any-return]
        if keep and self.impl.kept:
            _, kept = self._every(u_TBM, v_KN, _before(after, state_BS), is_init_TB, keep=True)
        return after, kept

    def _every(
        self, u_TBM: Tensor, v_KN: Tensor, before_TBS: Tensor, is_init_TB: Tensor, *, keep: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` of every step from a given state before it, as one step of T*B copies."""
        rows = u_TBM.flatten(0, 1)[None], v_KN, before_TBS.flatten(0, 1), is_init_TB.flatten()[None]
        after, kept = self.impl.forward(*rows, keep=keep)
        return after.view(len(after), *u_TBM.shape[:2], -1), kept

    def _iterate(self, u_TBM: Tensor, v_KN: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> Tensor | None:
        """Newton's or Jacobi's iterations; None if they do not converge."""
        newton, limit = self.solver.kind == "newton", LIMIT.get(self.solver.kind, BLOCK)
        nothing = torch.zeros_like(state_BS).expand(len(u_TBM) - 1, *state_BS.shape)
        after, _ = self._every(u_TBM, v_KN, torch.cat([state_BS[None], nothing]), is_init_TB)
        self.solver.failed = False
        for self.solver.iterations in range(1, limit + 1):
            before = _before(after, state_BS)
            found, _ = self._every(u_TBM, v_KN, before, is_init_TB)
            if newton:
                J_TBPPN, _, _ = self.impl.local(u_TBM, v_KN, before, is_init_TB)
                J_TBPPN[0] = 0.0  # the first state is known
                moved = (J_TBPPN * before.unflatten(-1, (len(after), -1)).unsqueeze(2)).sum(3)
                found = _scan(J_TBPPN, found.permute(1, 2, 0, 3) - moved).permute(2, 0, 1, 3)
            change, largest = torch.stack([(found - after).abs().max(), found.abs().max()]).tolist()
            after = found
            if change <= (TOLERANCE[u_TBM.dtype] * largest if newton else 0.0):
                return after.contiguous()
            if not change < float("inf"):
                break
        self.solver.failed = True
        return None

    def _blocks(self, u_TBM: Tensor, v_KN: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> Tensor | None:
        found, taken = [], 0.0
        for u, is_init in zip(u_TBM.split(BLOCK), is_init_TB.split(BLOCK), strict=True):
            after = self._iterate(u, v_KN, state_BS, is_init)
            if after is None:
                return None
            found.append(after)
            taken += self.solver.iterations
            state_BS = torch.cat(after[:, -1].unbind(0), -1)
        self.solver.iterations = taken / len(found)
        return torch.cat(found, 1)


def _before(after_PTBN: Tensor, state_BS: Tensor) -> Tensor:
    """The state before each step, [T, B, P*N], before any reset."""
    return torch.cat([state_BS[None], after_PTBN[:, :-1].permute(1, 2, 0, 3).flatten(2)])


def _scan(J_TBPPN: Tensor, b_TBPN: Tensor) -> Tensor:
    """h_t = J_t h_{t-1} + b_t with h_{-1} = 0."""
    if J_TBPPN.shape[2] == 1 and not J_TBPPN.is_cuda:  # one pass over the steps, parallel over the copies
        return diag_scan(J_TBPPN[:, :, 0, 0], b_TBPN[:, :, 0])[0].unsqueeze(2)
    return associative_scan(J_TBPPN, b_TBPN)


def associative_scan(J_TBPPN: Tensor, b_TBPN: Tensor) -> Tensor:
    """h_t = J_t h_{t-1} + b_t with h_{-1} = 0, in 2 log T operations over all steps: pairs of steps are joined to one,
    the recurrence of half as many is solved, and the steps between follow (Blelloch 1990, odd-even reduction).

    Args:
        J_TBPPN: a P x P block a unit.
        b_TBPN: what each step adds.
    """
    T = len(J_TBPPN)
    if T == 1:
        return b_TBPN
    first, second, pairs = J_TBPPN[0 : T - 1 : 2], J_TBPPN[1::2], b_TBPN[0 : T - 1 : 2]
    joined = (second.unsqueeze(4) * first.unsqueeze(2)).sum(3)
    odd = associative_scan(joined, _apply(second, pairs) + b_TBPN[1::2])
    h_TBPN = torch.empty_like(b_TBPN)
    h_TBPN[1::2] = odd
    h_TBPN[0] = b_TBPN[0]
    if T > 2:
        h_TBPN[2::2] = _apply(J_TBPPN[2::2], odd[: (T - 1) // 2]) + b_TBPN[2::2]
    return h_TBPN


def _apply(J: Tensor, h: Tensor) -> Tensor:
    return (J * h.unsqueeze(-3)).sum(-2)
