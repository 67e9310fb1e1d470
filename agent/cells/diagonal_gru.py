"""Diagonal GRU: a GRU whose recurrent weights are element-wise (ParaGRU; Danieli et al. 2025, "ParaRNN")."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import DiagonalCell
from lifelong.envs.options import Interval, Width
from lifelong.kernels.diagonal_sequence import diagonal_gru_local, diagonal_gru_sequence


class DiagonalGRU(DiagonalCell):
    """z, r = sigmoid(W x + v h + b), n = tanh(W_n x + v_n (r h) + b_n), h' = (1-z) h + z n. Order z, r, n.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        update_bias: b_z is drawn uniformly from [low, high]: a spread of time constants from the first step on.
    """

    GATES: ClassVar[tuple[str, ...]] = ("update", "reset", "candidate")
    VECTORS: ClassVar[tuple[str, ...]] = ("update", "reset", "candidate")

    def __init__(self, input_size: int, *, size: Width = 128, update_bias: Interval = (-4.0, 0.0)) -> None:
        super().__init__(input_size, size=size)
        low, high = (float(b) for b in update_bias)
        with torch.no_grad():
            self.bias[:size].uniform_(low, high)

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        z = torch.sigmoid(drives[0] + vectors[0] * c)
        r = torch.sigmoid(drives[1] + vectors[1] * c)
        return c + z * (torch.tanh(drives[2] + vectors[2] * (r * c)) - c)

    def scan(self, u_TBGN: Tensor, state_BN: Tensor, is_init_TB: Tensor) -> Tensor:
        return diagonal_gru_sequence(u_TBGN, self.weight_recurrent.flatten(), state_BN, is_init_TB)[0]

    def masked_step(self, x_BD: Tensor, state_BS: Tensor, is_init_B: Tensor) -> tuple[Tensor, Tensor]:
        h_TBN = self.scan(self.drive(x_BD)[None], state_BS, is_init_B[None])
        return h_TBN[0], h_TBN[0]

    def local_derivatives(
        self, u_TBGN: Tensor, vectors_KN: Tensor, state_TBN: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        a_TBN, local = diagonal_gru_local(u_TBGN, vectors_KN.flatten(), state_TBN, is_init_TB)
        local_TBGN = local.unflatten(-1, (3, self.size))
        vector_TBKN = local_TBGN * state_TBN.masked_fill(is_init_TB.unsqueeze(-1), 0.0).unsqueeze(2)
        reset_TBN = torch.sigmoid(u_TBGN[..., self.size : 2 * self.size] + vectors_KN[1] * state_TBN)
        vector_TBKN[:, :, 2] *= reset_TBN  # where the state was reset, it is zero already
        return a_TBN, local_TBGN, vector_TBKN
