"""Permutations that can be learned: a doubly stochastic matrix by Sinkhorn's iteration, with its implicit derivative,
and the permutation nearest to it.

Sinkhorn & Knopp 1967; Guerrero-Peña, Medeiros, Dubail, Aminbeidokhti, Granger & Pedersoli 2023, *Re-basin via implicit
Sinkhorn differentiation* (CVPR; arXiv 2212.12042), section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Sinkhorn(torch.autograd.Function):
    """P as a function of the scores: the P that maximises <P, X> + temperature H(P) with all rows and columns summing
    to one; its derivative is that of the optimum and not of the iteration."""

    @staticmethod
    def forward(ctx: Any, score_NN: Tensor, temperature: float, iterations: int) -> Tensor:  # type: ignore[override]
        log_NN = score_NN / temperature
        for _ in range(iterations):
            log_NN = log_NN - log_NN.logsumexp(0, keepdim=True)
            log_NN = log_NN - log_NN.logsumexp(1, keepdim=True)
        p_NN = log_NN.exp()
        ctx.temperature = temperature
        ctx.save_for_backward(p_NN)
        return p_NN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_NN: Tensor) -> tuple[Tensor, None, None]:
        (p_NN,) = ctx.saved_tensors
        r_NN, N = p_NN * d_NN, len(p_NN)
        # the constraints' multipliers; one of the 2N constraints follows from the others
        system = torch.cat(
            [
                torch.cat([torch.diag(p_NN.sum(1)), p_NN], 1),
                torch.cat([p_NN.T, torch.diag(p_NN.sum(0))], 1),
            ]
        )[:-1, :-1]
        sides = torch.cat([r_NN.sum(1), r_NN.sum(0)])[:-1]
        u = torch.cat([torch.linalg.solve(system, sides), sides.new_zeros(1)])
        return (r_NN - p_NN * (u[:N, None] + u[None, N:])) / ctx.temperature, None, None


def sinkhorn(score_NN: Tensor, temperature: float = 1.0, iterations: int = 20) -> Tensor:
    """The doubly stochastic matrix of scores [N, N]: exp(score / temperature), its columns and rows normalised in turn.

    Differentiable by the implicit function theorem, at the cost of a linear system of 2N, whatever the number of
    iterations. Rows sum to one exactly, columns as far as the iterations went.
    """
    result: Tensor = _Sinkhorn.apply(score_NN, temperature, iterations)  # type: ignore[no-untyped-call]
    return result


def assignment(score_NN: Tensor) -> Tensor:
    """The permutation with the largest sum of score[i, permutation[i]], int64 [N].

    By shortest augmenting paths with potentials (Kuhn 1955; Jonker & Volgenant 1987), on the host.
    """
    cost = -score_NN.detach().double().cpu().numpy()
    N = len(cost)
    row_of, row_price, column_price = np.full(N + 1, -1), np.zeros(N), np.zeros(N + 1)
    for row in range(N):
        row_of[N] = row  # a column besides, where the path begins
        column, done = N, np.zeros(N + 1, bool)
        shortest, before = np.full(N, np.inf), np.full(N, N)
        while row_of[column] >= 0:
            done[column] = True
            current, free = row_of[column], ~done[:N]
            reduced = cost[current] - row_price[current] - column_price[:N]
            better = free & (reduced < shortest)
            shortest[better], before[better] = reduced[better], column
            following = int(np.where(free, shortest, np.inf).argmin())
            step = shortest[following]
            row_price[row_of[done]] += step
            column_price[done] -= step
            shortest[free] -= step
            column = following
        while column != N:
            row_of[column], column = row_of[before[column]], before[column]
    permutation = np.empty(N, np.int64)
    permutation[row_of[:N]] = np.arange(N)
    return torch.from_numpy(permutation).to(score_NN.device)
