"""What the backward passes of all cells have in common, as compiled calls (see `planned.backward`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong.agent.cells.base import Cell
from lifelong.agent.gradients.base import GradientEngine
from lifelong.kernels.loop import Call, Direct, Each, by_round


@dataclass
class CellRows:
    """What acting left of K rounds of T steps of B copies."""

    rounds: int
    x_TBD: Tensor  # [K * T, B, D]
    state_TBS: Tensor  # before each step and after the last, K * T + 1 rows
    is_init_TB: Tensor  # [K * T, B]
    kept: tuple[Tensor, ...]  # of `Cell.read_out_calls`: the output gate of an eLSTM, the gates of dense cells


class CellCalls:
    """The calls of one cell over the rows of every round.

    Attributes:
        pack: what reads the parameters.
        before: calls before the first use of `outputs`, if acting has left the rows.
        outputs: what the heads read [T * B, N].
        first_slopes: the gradient of the state before the first step [B, S], once those of `backward` have been made.
    """

    outputs: Tensor | Each

    def __init__(self, cell: Cell, rows: CellRows) -> None:
        self.cell, self.rows, K = cell, rows, rows.rounds
        self.T, self.B, self.D = len(rows.x_TBD) // K, rows.x_TBD.shape[1], rows.x_TBD.shape[2]
        self.M, self.dtype = self.T * self.B, rows.x_TBD.dtype
        self.x = by_round(rows.x_TBD, K, self.T)
        self.first = Each(rows.state_TBS[: K * self.T].unflatten(0, (K, self.T))[:, 0])
        self.init = Each(rows.is_init_TB[: K * self.T].unflatten(0, (K, self.T)))
        self.pack: list[Call | Direct] = []
        self.before: list[Call | Direct] = []
        self.first_slopes = self.empty(self.B, rows.state_TBS.shape[-1])

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def forward(self) -> list[Call | Direct]:
        """The states, and what is kept, anew, from the inputs and the first state: what acting left otherwise."""
        raise NotImplementedError

    def backward(self, slopes: Tensor, grads: Mapping[str, Tensor], dx: Tensor | None) -> list[Call | Direct]:
        """From the gradients `slopes` [T * B, N] of the output: adds those of the parameters to `grads`, by name in the
        cell, and writes that of the input to `dx` [T * B, D] if it is given. The state before is a constant."""
        raise NotImplementedError

    def boundary(self, engine: GradientEngine, grads: Mapping[str, Tensor], copies: Each) -> list[Call | Direct]:
        """After `backward`: adds the part that the carry of the `copies` (int64 [B]) has in the gradients."""
        return []

    def carry(self, engine: GradientEngine, grads: Mapping[str, Tensor]) -> list[Call | Direct]:
        """After `backward`: adds the carry's part to the gradients and moves the carry, in place, over the round."""
        return []

    def finish(self, engine: GradientEngine) -> None:
        """After the last round: what the engine reports."""
