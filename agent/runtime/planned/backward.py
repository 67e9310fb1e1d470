"""The backward pass of a cell over a chunk and the step of its carry, as compiled calls (see `planned.plan`).

For cells with one part of state a unit, c_t = r(u_t, v, c_{t-1}) with u_t = W x_t + b: the eLSTM, whose output gate is
dense, and cells whose output is their state. GRU and LSTM are in `backward_dense`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.cells.base import Cell, ElementwiseCell
from lifelong.agent.cells.elstm import ELSTM
from lifelong.agent.cells.gru import GRU
from lifelong.agent.cells.lstm import LSTM
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.runtime.planned.cell_calls import CellCalls, CellRows
from lifelong.agent.runtime.planned.dense import GRUBackward, LSTMBackward
from lifelong.kernels import gru_sequence, lstm_sequence
from lifelong.kernels.arguments import zeros
from lifelong.kernels.dense import Dense, add_groups, clear, gather, multiply, transpose
from lifelong.kernels.elstm import gate_backward_call, gate_call
from lifelong.kernels.loop import Call, Direct, Each, Held, by_round
from lifelong.kernels.recurrence.cpu import GROUP, GROUPS, Compiled
from lifelong.kernels.recurrence.source import ROWS
from lifelong.kernels.rtrl.cpu import advance_call, boundary_call, read_small_call


def refusal(cell: Cell, engine: GradientEngine) -> str | None:
    """Why there are no such calls for a cell and an engine; None if there are."""
    if type(engine) not in (RTRL, BPTT):
        return f"the engine {type(engine).__name__}"
    found = cell_refusal(cell)
    if found is None and isinstance(engine, RTRL) and engine.weight_BGND.dtype != engine.small_BMN.dtype:
        return "a carry in bfloat16"
    return found


def cell_refusal(cell: Cell) -> str | None:
    """Why there are no such calls for the backward pass of a cell; None if there are."""
    if type(cell) in (GRU, LSTM):
        return None if cell.compiled() else f"the cell {type(cell).__name__}"
    if not isinstance(cell, ElementwiseCell) or cell.PARTS != 1 or cell.solver is not None or not cell.compiled():
        return f"the cell {type(cell).__name__}"
    if type(cell).spread is not ElementwiseCell.spread or type(cell).fold is not ElementwiseCell.fold:
        return f"the cell {type(cell).__name__}"
    impl, program = _implementation(cell), cell.compiled_recurrence().program
    if not isinstance(impl, Compiled) or program is None or program.extra or impl.kept or not cell.VECTORS:
        return f"the recurrence of {type(cell).__name__}"
    return None


def _implementation(cell: ElementwiseCell) -> Any:
    return cell.compiled_recurrence().implementation("auto", cell.bias)


def room(cell: Cell, steps: int, copies: int) -> CellRows:
    """Empty rows for one round of T steps of B copies."""
    like = next(cell.parameters()).detach()
    x, state = like.new_empty(steps, copies, cell.input_size), like.new_empty(steps + 1, copies, cell.state_size)
    kept: tuple[Tensor, ...] = ()
    if isinstance(cell, ELSTM):
        kept = (like.new_empty(steps, copies, cell.size),)
    elif isinstance(cell, GRU):
        kept = gru_sequence.kept(like, steps, copies, cell.size)
    elif isinstance(cell, LSTM):
        kept = lstm_sequence.kept(like, steps, copies, cell.size)
    return CellRows(1, x, state, torch.empty(steps, copies, dtype=torch.bool), kept)


def calls_of(cell: Cell, rows: CellRows, *, again: bool = False) -> CellCalls:
    """The calls of a cell.

    Args:
        cell: `cell_refusal` found nothing.
        rows: what acting left.
        again: let `forward` compute states and what is kept again.
    """
    if isinstance(cell, GRU):
        return GRUBackward(cell, rows, again=again)
    if isinstance(cell, LSTM):
        return LSTMBackward(cell, rows, again=again)
    assert isinstance(cell, ElementwiseCell)
    return CellBackward(cell, rows, again=again)


class CellBackward(CellCalls):
    """Cells with one part of state a unit."""

    cell: ElementwiseCell

    def __init__(self, cell: ElementwiseCell, rows: CellRows, *, again: bool = False) -> None:
        super().__init__(cell, rows)
        K, N = rows.rounds, cell.size
        self.after = by_round(rows.state_TBS[1:], K, self.T)
        self.states = Each(rows.state_TBS[: K * self.T].unflatten(0, (K, self.T)))
        self.drive = Dense(cell.weight_input, cell.bias, rows=self.M)
        self.pack = [*self.drive.pack()]
        self.outputs = self.after
        self.v = cell.weight_recurrent.detach()
        self.gated = isinstance(cell, ELSTM)
        if isinstance(cell, ELSTM):
            self.gate = by_round(rows.kept[0], K, self.T)
            self.from_input = Dense(cell.output_input, cell.output_bias)
            self.from_state = Dense(cell.output_state, cell.output_bias)
            self.pack += [*self.from_input.pack(forward=again), *self.from_state.pack(forward=again)]
            self.outputs = self.empty(self.M, N)
            self.before.append(multiply(self.gate, self.after, self.outputs))
        #: of the carry's part of the last round: the largest entries of |dstate_t/dstate_{t-1}|
        self.top: Tensor | None = None

    def backward(self, slopes: Tensor, grads: Mapping[str, Tensor], dx: Tensor | None) -> list[Call | Direct]:
        calls: list[Call | Direct] = []
        cell, T, B, N = self.cell, self.T, self.B, self.cell.size
        program, impl = cell.compiled_recurrence().program, _implementation(cell)
        assert program is not None
        u, du, e = self.empty(self.M, program.gates * N), self.empty(self.M, program.gates * N), slopes
        dgate = self.empty(self.M, N)
        if self.gated:
            e = self.empty(self.M, N)
            calls.append(gate_backward_call(self.after, self.gate, slopes, dgate, e))
            names = grads["output_state"], grads["output_bias"]
            calls += self.from_state.backward(self.after, self.after, dgate, dgate, *names, e, add=True)
        calls.append(self.drive.forward(self.x, u))
        w, partial = self.empty(max(1, impl.hoisted) * N), self.empty(-(-B // ROWS), program.vectors, N)
        dv, zero = self.empty(program.vectors, N), zeros(N, self.dtype)
        errors = Held((ctypes.c_void_p * 1)(e.data_ptr()))
        self.held = e
        threads = torch.get_num_threads()
        calls.append(
            Direct(
                impl.call["backward"],
                (
                    *(T, B, N, threads, u, self.v, w, self.first, self.init, zero, self.after, None),
                    *(errors, None, du, partial, dv, self.first_slopes),
                ),
            )
        )
        calls += self.drive.backward(self.x, u, du, du, grads["weight_input"], grads["bias"], dx, add=False)
        calls.append(add_groups(dv[None], grads["weight_recurrent"]))
        if self.gated:
            calls += self.from_input.backward(self.x, dgate, dgate, dgate, grads["output_input"], None, dx, add=True)
        self._drive, self._hoisted = u, w
        return calls

    def forward(self) -> list[Call | Direct]:
        T, B, N, impl = self.T, self.B, self.cell.size, _implementation(self.cell)
        u, w = self.empty(self.M, len(self.cell.weight_input)), self.empty(max(1, impl.hoisted) * N)
        arguments = (T, B, N, torch.get_num_threads(), 1, u, self.v, w, self.first, self.init, zeros(N, self.dtype))
        calls: list[Call | Direct] = [
            self.drive.forward(self.x, u),
            Direct(impl.call["forward"], (*arguments, self.after, None)),
        ]
        if self.gated:
            assert isinstance(self.outputs, Tensor)
            calls += [self.from_input.forward(self.x, self.gate), self.from_state.add(self.after, self.gate)]
            calls.append(gate_call(self.after, self.gate, self.outputs))
        return calls

    def boundary(self, engine: GradientEngine, grads: Mapping[str, Tensor], copies: Each) -> list[Call | Direct]:
        boundary = self.first_slopes
        if not isinstance(engine, RTRL):
            return []
        S, s, G = engine.weight_BGND, engine.small_BMN, len(self.cell.GATES)
        weight, some, small = torch.empty_like(S[0]), self.empty(self.B, *s.shape[1:]), self.empty(1, *s.shape[1:])
        return [
            boundary_call(S, boundary, copies, weight),
            add_groups(weight[None], grads["weight_input"]),
            gather(copies, s[None], some),
            read_small_call(some, boundary, small),
            add_groups(small[:, :G], grads["bias"]),
            add_groups(small[:, G:], grads["weight_recurrent"]),
        ]

    def carry(self, engine: GradientEngine, grads: Mapping[str, Tensor]) -> list[Call | Direct]:
        T, B, D, N = self.T, self.B, self.D, self.cell.size
        u, w, boundary = self._drive, self._hoisted, self.first_slopes
        if not isinstance(engine, RTRL):
            return []
        S, s, impl = engine.weight_BGND, engine.small_BMN, _implementation(self.cell)
        program, threads, zero = self.cell.compiled_recurrence().program, torch.get_num_threads(), zeros(N, self.dtype)
        assert program is not None
        G, V = program.gates, program.vectors
        small = self.empty(1, G + V, N)
        if impl.narrow >= D:
            group = max(GROUP, -(-B // GROUPS))
            groups = -(-B // group)
            weight, grad, grad_s = self.empty(D, G * N), self.empty(groups, G, D, N), self.empty(groups, G + V, N)
            self.pack.append(transpose(self.cell.weight_input.detach(), weight))
            self.top = self.empty(groups, N)
            bias = self.cell.bias.detach()
            calls: list[Call | Direct] = [
                Direct(
                    impl.call["narrow"],
                    (
                        *(T, B, D, N, threads, 0, group, S, s, self.x, weight, bias, self.v, w, self.states, self.init),
                        *(zero, boundary, grad, grad_s, self.top),
                    ),
                ),
                add_groups(grad, grads["weight_input"], transposed=True),
                clear(small),
                add_groups(grad_s, small),
            ]
        else:
            blocks = -(-B // ROWS)
            J, l, self.top = self.empty(T, B, N), self.empty(T, B, G, N), self.empty(blocks, N)  # noqa: E741
            scratch = self.empty(blocks * program.carried * N)
            advance, grad = advance_call(S, J, l, self.x, boundary)
            calls = [
                read_small_call(s, boundary, small),
                Direct(
                    impl.call["trace"],
                    (T, B, N, threads, u, self.v, w, self.states, self.init, zero, J, l, s, self.top, scratch),
                ),
                advance,
                add_groups(grad, grads["weight_input"]),
            ]
        return [*calls, add_groups(small[:, :G], grads["bias"]), add_groups(small[:, G:], grads["weight_recurrent"])]

    def finish(self, engine: GradientEngine) -> None:
        if isinstance(engine, RTRL) and self.top is not None:
            engine.max_jacobian = self.top.max()
