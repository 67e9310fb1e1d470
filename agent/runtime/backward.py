"""The backward pass of a cell over a chunk and the step of its carry, as compiled calls (see `agent.runtime.plan`).

For cells with one part of state a unit, c_t = r(u_t, v, c_{t-1}) with u_t = W x_t + b: the eLSTM, whose output gate is
dense, and cells whose output is their state.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.cells.base import Cell, ElementwiseCell
from lifelong.agent.cells.elstm import ELSTM
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
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


@dataclass
class CellRows:
    """What acting left of K rounds of T steps of B copies."""

    rounds: int
    x_TBD: Tensor  # [K * T, B, D]
    state_TBS: Tensor  # before each step and after the last, K * T + 1 rows
    is_init_TB: Tensor  # [K * T, B]
    gate_TBN: Tensor | None  # the output gate of an eLSTM


class CellBackward:
    """The calls for one cell.

    Args:
        cell: `cell_refusal` found nothing.
        rows: what acting left.
        again: let `forward` compute the states again.

    Attributes:
        pack: what reads the parameters.
        outputs: what the heads read [T * B, N], once the calls of `before` have been made.
        first_slopes: the gradient of the state before the first step [B, N], once those of `backward` have been made.
    """

    def __init__(self, cell: ElementwiseCell, rows: CellRows, *, again: bool = False) -> None:
        self.cell, self.rows = cell, rows
        K, N = rows.rounds, cell.size
        self.T, self.B, self.D = len(rows.x_TBD) // K, rows.x_TBD.shape[1], rows.x_TBD.shape[2]
        self.M, self.dtype = self.T * self.B, cell.bias.dtype
        self.x, self.after = by_round(rows.x_TBD, K, self.T), by_round(rows.state_TBS[1:], K, self.T)
        before = rows.state_TBS[: K * self.T].unflatten(0, (K, self.T))
        self.first, self.states = Each(before[:, 0]), Each(before)
        self.init = Each(rows.is_init_TB[: K * self.T].unflatten(0, (K, self.T)))
        self.drive = Dense(cell.weight_input, cell.bias, rows=self.M)
        self.pack: list[Call | Direct] = [*self.drive.pack()]
        self.before: list[Call | Direct] = []
        self.outputs: Tensor | Each = self.after
        self.v = cell.weight_recurrent.detach()
        if rows.gate_TBN is not None:
            assert isinstance(cell, ELSTM)
            self.gate = by_round(rows.gate_TBN, K, self.T)
            self.from_input = Dense(cell.output_input, cell.output_bias)
            self.from_state = Dense(cell.output_state, cell.output_bias)
            self.pack += [*self.from_input.pack(forward=again), *self.from_state.pack(forward=again)]
            self.outputs = self._empty(self.M, N)
            self.before.append(multiply(self.gate, self.after, self.outputs))
        self.first_slopes = self._empty(self.B, N)
        #: of the carry's part of the last round: the largest entries of |dstate_t/dstate_{t-1}|
        self.top: Tensor | None = None

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def backward(self, slopes: Tensor, grads: Mapping[str, Tensor], dx: Tensor | None) -> list[Call | Direct]:
        """From the gradients `slopes` [T * B, N] of the output: adds those of the parameters to `grads`, by name in the
        cell, and writes that of the input to `dx` [T * B, D] if it is given. The state before is a constant."""
        calls: list[Call | Direct] = []
        cell, T, B, N = self.cell, self.T, self.B, self.cell.size
        program, impl = cell.compiled_recurrence().program, _implementation(cell)
        assert program is not None
        u, du, e = self._empty(self.M, program.gates * N), self._empty(self.M, program.gates * N), slopes
        dgate = self._empty(self.M, N)
        if self.rows.gate_TBN is not None:
            e = self._empty(self.M, N)
            calls.append(gate_backward_call(self.after, self.gate, slopes, dgate, e))
            names = grads["output_state"], grads["output_bias"]
            calls += self.from_state.backward(self.after, self.after, dgate, dgate, *names, e, add=True)
        calls.append(self.drive.forward(self.x, u))
        w, partial = self._empty(max(1, impl.hoisted) * N), self._empty(-(-B // ROWS), program.vectors, N)
        dv, zero = self._empty(program.vectors, N), zeros(N, self.dtype)
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
        if self.rows.gate_TBN is not None:
            calls += self.from_input.backward(self.x, dgate, dgate, dgate, grads["output_input"], None, dx, add=True)
        self._drive, self._hoisted = u, w
        return calls

    def forward(self) -> list[Call | Direct]:
        """The states and the output gate anew, from the inputs and the first state: what acting left otherwise."""
        T, B, N, impl, rows = self.T, self.B, self.cell.size, _implementation(self.cell), self.rows
        u, w = self._empty(self.M, len(self.cell.weight_input)), self._empty(max(1, impl.hoisted) * N)
        arguments = (T, B, N, torch.get_num_threads(), 1, u, self.v, w, self.first, self.init, zeros(N, self.dtype))
        calls: list[Call | Direct] = [
            self.drive.forward(self.x, u),
            Direct(impl.call["forward"], (*arguments, self.after, None)),
        ]
        if rows.gate_TBN is not None:
            assert isinstance(self.outputs, Tensor)
            calls += [self.from_input.forward(self.x, self.gate), self.from_state.add(self.after, self.gate)]
            calls.append(gate_call(self.after, self.gate, self.outputs))
        return calls

    def boundary(self, engine: GradientEngine, grads: Mapping[str, Tensor], copies: Each) -> list[Call | Direct]:
        """After `backward`: adds the part that the carry of the `copies` (int64 [B]) has in the gradients."""
        boundary = self.first_slopes
        if not isinstance(engine, RTRL):
            return []
        S, s, G = engine.weight_BGND, engine.small_BMN, len(self.cell.GATES)
        weight, some, small = torch.empty_like(S[0]), self._empty(self.B, *s.shape[1:]), self._empty(1, *s.shape[1:])
        return [
            boundary_call(S, boundary, copies, weight),
            add_groups(weight[None], grads["weight_input"]),
            gather(copies, s[None], some),
            read_small_call(some, boundary, small),
            add_groups(small[:, :G], grads["bias"]),
            add_groups(small[:, G:], grads["weight_recurrent"]),
        ]

    def carry(self, engine: GradientEngine, grads: Mapping[str, Tensor]) -> list[Call | Direct]:
        """After `backward`: adds the carry's part to the gradients and moves the carry, in place, over the round."""
        T, B, D, N = self.T, self.B, self.D, self.cell.size
        u, w, boundary = self._drive, self._hoisted, self.first_slopes
        if not isinstance(engine, RTRL):
            return []
        S, s, impl = engine.weight_BGND, engine.small_BMN, _implementation(self.cell)
        program, threads, zero = self.cell.compiled_recurrence().program, torch.get_num_threads(), zeros(N, self.dtype)
        assert program is not None
        G, V = program.gates, program.vectors
        small = self._empty(1, G + V, N)
        if impl.narrow >= D:
            group = max(GROUP, -(-B // GROUPS))
            groups = -(-B // group)
            weight, grad, grad_s = self._empty(D, G * N), self._empty(groups, G, D, N), self._empty(groups, G + V, N)
            self.pack.append(transpose(self.cell.weight_input.detach(), weight))
            self.top = self._empty(groups, N)
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
            J, l, self.top = self._empty(T, B, N), self._empty(T, B, G, N), self._empty(blocks, N)  # noqa: E741
            scratch = self._empty(blocks * program.carried * N)
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
        """After the last round: what the engine reports."""
        if isinstance(engine, RTRL) and self.top is not None:
            engine.max_jacobian = self.top.max()
