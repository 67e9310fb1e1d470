"""The backward pass of GRU and LSTM over a chunk as compiled calls (see `planned.backward`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lifelong.agent.cells.gru import GRU
from lifelong.agent.cells.lstm import LSTM
from lifelong.agent.runtime.planned.cell_calls import CellCalls, CellRows
from lifelong.kernels import acting, gru_sequence, lstm_sequence
from lifelong.kernels.dense import Dense, clear, packing
from lifelong.kernels.loop import Call, Direct, Each, by_round


class DenseBackward(CellCalls):
    """What the two have in common; the first state is a constant, and no engine has a carry of them here."""

    cell: GRU | LSTM

    def __init__(self, cell: GRU | LSTM, rows: CellRows, *, again: bool = False) -> None:
        super().__init__(cell, rows)
        K, T, N, gates = rows.rounds, self.T, cell.size, len(cell.input.weight)
        bias, biases = self._bias()
        self.drive = Dense(cell.input.weight, bias, rows=self.M)
        self.recurrent = Dense(cell.hidden.weight, cell.input.bias)  # for its weights' gradient alone
        self._forward_weight, forward = packing(cell.hidden.weight, transposed=True)
        self._backward_weight, backward = packing(cell.hidden.weight)
        self.pack = [*biases, *self.drive.pack(), backward, *([forward] if again else [])]
        self.read_rows = rows.kept[-1]  # what every step read of the state, with a row more
        read = self.read_rows[: K * T].unflatten(0, (K, T)), self.read_rows[1 : K * T + 1].unflatten(0, (K, T))
        self.first_read, self.then_read = Each(read[0][:, 0]), Each(read[1])
        self.outputs = by_round(rows.state_TBS[1:, :, :N], K, T)
        self.du, self.gates = self.empty(self.M, gates), self._each(rows.kept[0])

    def _bias(self) -> tuple[Tensor, list[Call | Direct]]:
        return self.cell.input.bias, []

    def _each(self, rows_TBn: Tensor) -> Each:
        """The rows of every round."""
        K = self.rows.rounds
        return Each(rows_TBn[: K * self.T].unflatten(0, (K, self.T)))

    def _weights(
        self, grads: Mapping[str, Tensor], inner: Tensor, bias: Tensor | None, dx: Tensor | None
    ) -> list[Call]:
        """Add the gradients of weights and biases, from those of the drives, in place, and of W h (`inner`)."""
        read = by_round(self.read_rows, self.rows.rounds, self.T)
        return [
            *self.recurrent.backward(read, inner, inner, inner, grads["hidden.weight"], bias, None, add=False),
            *self.drive.backward(
                self.x, self.du, self.du, self.du, grads["input.weight"], grads["input.bias"], dx, add=False
            ),
        ]


class GRUBackward(DenseBackward):
    """h' = (1 - z) n + z h, whose recurrent bias of n is inside the reset gate."""

    cell: GRU

    def _bias(self) -> tuple[Tensor, list[Call | Direct]]:
        bias, self.inside, calls = self.cell.bias_calls()
        return bias, calls

    def _rows(self) -> tuple[Each, Each, Each, Each]:
        return self.gates, self._each(self.rows.kept[1]), self.first_read, self.then_read

    def forward(self) -> list[Call | Direct]:
        shape = self.T, self.B, self.cell.size
        after = self._each(self.rows.state_TBS[1:])
        return [
            self.drive.forward(self.x, self.du),
            gru_sequence.forward_call(
                shape, self.du, self._forward_weight, self.inside, self.first, self.init, after, self._rows()
            ),
        ]

    def backward(self, slopes: Tensor, grads: Mapping[str, Tensor], dx: Tensor | None) -> list[Call | Direct]:
        shape, inner = (self.T, self.B, self.cell.size), torch.empty_like(self.du)
        return [
            clear(self.first_slopes),
            gru_sequence.backward_call(
                shape, self._backward_weight, self.init, self._rows(), slopes, self.du, inner, self.first_slopes
            ),
            *self._weights(grads, inner, grads["hidden.bias"], dx),
        ]


class LSTMBackward(DenseBackward):
    """State [h | c], of which the heads read h."""

    cell: LSTM

    def _rows(self) -> tuple[Each, Each, Each, Each, Each]:
        _, c, before, _ = self.rows.kept
        c0 = Each(self._each(before).rows[:, 0])
        return self.gates, self._each(c), c0, self.first_read, self.then_read

    def forward(self) -> list[Call | Direct]:
        (T, B, N), state = (self.T, self.B, self.cell.size), self.rows.state_TBS[1:]
        assert self.rows.rounds == 1
        h, c = self.empty(T, B, N), self.rows.kept[1]
        return [
            self.drive.forward(self.x, self.du),
            lstm_sequence.forward_call(
                (T, B, N), self.du, self._forward_weight, self.first, self.init, h, self._rows()
            ),
            acting.place_rows(h.view(-1, N), state[..., :N].flatten(0, 1)),
            acting.place_rows(c[:T].view(-1, N), state[..., N:].flatten(0, 1)),
        ]

    def backward(self, slopes: Tensor, grads: Mapping[str, Tensor], dx: Tensor | None) -> list[Call | Direct]:
        shape, N = (self.T, self.B, self.cell.size), self.cell.size
        dh0, dc0 = self.empty(self.B, N), self.empty(self.B, N)
        return [
            clear(dh0),
            clear(dc0),
            lstm_sequence.backward_call(
                shape, self._backward_weight, self.init, self._rows(), slopes, self.du, dh0, dc0
            ),
            acting.place_rows(dh0, self.first_slopes[:, :N]),
            acting.place_rows(dc0, self.first_slopes[:, N:]),
            *self._weights(grads, self.du, None, dx),
        ]
