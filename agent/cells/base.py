"""The recurrent cell contract, and the base classes that give a new element-wise cell exact RTRL for free.

Shapes: T steps, B copies, D cell input, N units, S state, H output, G gates, K element-wise weight vectors.
A cell's state is one tensor [B, S] (LSTM packs h and c). `is_init[t]` means: the state is reset before consuming x[t].
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lifelong.envs.options import Width
from lifelong.kernels.acting import available, read_out, recurrence
from lifelong.kernels.dense import Dense
from lifelong.kernels.loop import Calls, Each
from lifelong.kernels.recurrence import Recurrence, Solver, boundary


@dataclass
class Acted:
    """What acting computed on a chunk: it is the forward pass, as long as the parameters have not changed since."""

    state_TBS: Tensor  # after each step
    kept: tuple[Tensor, ...]  # what `read_out` kept of each step, [T, B, ...]


@dataclass
class CellChunk:
    """What an element-wise cell went through in a chunk, and the recurrent parameters that it had then."""

    x_TBD: Tensor  # inputs
    state_TBS: Tensor  # before each step, before any reset
    is_init_TB: Tensor  # reset flags
    weight_input: Tensor  # [G*P, D]
    bias: Tensor  # [G*P]
    weight_recurrent: Tensor  # [K, P]

    def drive(self) -> Tensor:
        """All drives of all steps, [T, B, G*P]."""
        return nn.functional.linear(self.x_TBD, self.weight_input, self.bias)


class Cell(nn.Module):
    """A recurrent cell. Subclasses set the sizes and write `step`; `sequence` has a reset-aware loop as default.

    `jacobian` states the structure of d state_t / d state_{t-1}, from which the allowed gradient engines follow:
    `diagonal` (element-wise), `linear_diagonal` (element-wise, the same at every state), `block` (small blocks) or
    `dense`.

    Args:
        input_size: D.
        state_size: S; entry i belongs to unit i mod N, up to `unit_state` (S by default); what lies behind, to none.
        output_size: H, entry i of unit i mod N.
        units: N, H by default.
    """

    jacobian: ClassVar[str] = "dense"
    #: whether it is made of cells, each with a gradient engine of its own
    composite: ClassVar[bool] = False
    #: whether units hear each other through weights alone, so that one can begin anew without the others
    units_apart: ClassVar[bool] = True
    #: whether with its units in any other order, their weights with them, it is the same cell
    interchangeable: bool = True
    #: how the steps of a sequence are taken all at once, if they are
    solver: Solver | None = None

    def __init__(self, input_size: int, state_size: int, output_size: int, units: int | None = None) -> None:
        super().__init__()
        if output_size < 1:
            raise ValueError(f"size is {output_size}; it must be at least 1")
        self.input_size = input_size
        self.state_size = state_size
        self.output_size = output_size
        self.units = output_size if units is None else units
        self.unit_state = state_size

    def initial_state(self, copies: int, device: torch.device | str | None = None) -> Tensor:
        """The state at the start of an episode, zeros [B, S]."""
        weight = next(self.parameters())
        return torch.zeros(copies, self.state_size, device=device or weight.device, dtype=weight.dtype)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """One step without any reset: `(y_BH, state_BS)`."""
        raise NotImplementedError

    def state_from(self, drives: dict[str, Tensor], state: Tensor) -> Tensor:
        """The state after a step, unit by unit, from the drives [..., G*N] of every tap and the state before [..., S].

        Gradient engines take their local derivatives from it (`agent.cells.local`). A cell that leaves it out is one
        block to them, and all of them cost what `exact` costs. Element-wise parameters are used as vectors [..., N].
        """
        raise NotImplementedError

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        """The output [..., H] of a step from its input and the state after it: the first H entries by default."""
        return state[..., : self.output_size]

    def recurrent_parameters(self) -> list[str]:
        """The parameters that a state is a function of, which are those that a carry covers."""
        timeless = self.timeless_parameters()
        return [name for name, _ in self.named_parameters() if name not in timeless]

    def masked_step(self, x_BD: Tensor, state_BS: Tensor, is_init_B: Tensor) -> tuple[Tensor, Tensor]:
        """One step after resetting the state where `is_init_B`: `(y_BH, state_BS)`."""
        return self.step(x_BD, state_BS * (~is_init_B).unsqueeze(-1))

    def read_out(
        self, x_BD: Tensor, state_BS: Tensor, is_init_B: Tensor, weight_PH: Tensor, bias_P: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """`masked_step` and a linear layer on its output: `(read_BP, state_BS, kept)`.

        Cells with a kernel override this; `kept` is what their `sequence` can use again, nothing by default.
        """
        y_BH, state_BS = self.masked_step(x_BD, state_BS, is_init_B)
        return nn.functional.linear(y_BH, weight_PH, bias_P), state_BS, ()

    def compiled(self) -> bool:
        """Whether `read_out_calls` can be used; False by default."""
        return False

    def read_out_calls(
        self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor, weight_PH: Tensor, bias_P: Tensor
    ) -> tuple[Calls, Tensor, tuple[Tensor, ...]]:
        """`read_out` of row t, writing row t + 1 of the state, for `kernels.loop`: `(calls, read_TBP, kept)`.

        `state_TBS` and `is_init_TB` have a row more than there are steps.
        """
        raise NotImplementedError

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        """T steps; the state is multiplied by zero where `is_init` before the step: `(y_TBH, final state_BS)`.

        With `acted`, made by `read_out` from the same inputs and parameters, a cell may leave the forward pass out.
        """
        keep_TB1 = (~is_init_TB).to(x_TBD.dtype).unsqueeze(-1)
        outputs = []
        for x_BD, keep_B1 in zip(x_TBD, keep_TB1, strict=True):
            y_BH, state_BS = self.step(x_BD, state_BS * keep_B1)
            outputs.append(y_BH)
        return torch.stack(outputs), state_BS

    @torch.no_grad()
    def states(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> Tensor:
        """The state after each step of `sequence`, [T, B, S], without a gradient."""
        states = []
        for x_BD, is_init_B in zip(x_TBD, is_init_TB, strict=True):
            _, state_BS = self.masked_step(x_BD, state_BS, is_init_B)
            states.append(state_BS)
        return torch.stack(states)

    def reset_units(self, state_BS: Tensor, units: Tensor) -> None:
        """Zero everything that the state [B, S] holds of the `units` (int64), in place: h and c of an LSTM."""
        state_BS[..., : self.unit_state].unflatten(-1, (-1, self.units))[..., units] = 0.0

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        """Which parameters read which presynaptic vector: tap -> (weight names, concatenated in order; bias name).

        Strategies that protect what a weight matrix sees (gpm) project on these. A matrix's rows are the outputs.
        """
        raise NotImplementedError

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        """The presynaptic vectors of `taps`, given M inputs and the (reset) states before them: tap -> [M, n]."""
        raise NotImplementedError

    def elementwise_parameters(self) -> list[str]:
        """Recurrent parameters that multiply the state element by element, which have no matrix to project."""
        return []

    def shared_parameters(self) -> list[str]:
        """Parameters whose rows belong to no unit: the keys of a cell whose units have rows of one matrix as state."""
        return []

    def timeless_parameters(self) -> list[str]:
        """Parameters of the output, of which no state is a function: their gradient is exact under every engine."""
        return [name for name, _ in self.named_parameters() if name.startswith("output_")]

    def maps(self, name: str) -> int:
        """How many linear maps lie in a weight matrix, one above the other: one a gate."""
        return 1 if name in self.shared_parameters() else max(1, len(self.get_parameter(name)) // self.units)

    def input_weights(self) -> list[str]:
        """The weights of `taps` whose columns read the cell's input, and not its units."""
        weight = next(self.parameters())
        x_1D = torch.linspace(0.1, 0.9, self.input_size).to(weight)[None]
        state_1S = torch.linspace(-0.9, -0.1, self.state_size).to(weight)[None]
        seen, found = self.presynaptic(x_1D, state_1S), []
        for tap, (names, _) in self.taps().items():
            widths = [self.get_parameter(name).shape[1] for name in names]
            columns = seen[tap].split(widths, -1)
            found += [name for name, read in zip(names, columns, strict=True) if torch.equal(read, x_1D)]
        return found

    @torch.no_grad()
    def unit_parameters(self) -> tuple[dict[str, int], dict[str, int]]:
        """What belongs to a unit: `(incoming, outgoing)`, name of a parameter -> dimension. Along it the entries n,
        N + n, 2N + n ... are those of unit n, one a gate.

        Incoming are the rows of all gates with their biases, and element-wise weights; outgoing are the columns of
        weights that read the units. What reads the cell's output from outside is not known here.

        Raises:
            ValueError: a matrix is in no tap, so what it reads is not known; or units hear each other without weights.
        """
        if not self.units_apart:
            raise ValueError(
                f"the units of {type(self).__name__} hear each other without a weight between, so none can be reset"
            )
        elementwise, reads_input = self.elementwise_parameters(), self.input_weights()
        shared = self.shared_parameters()
        known = {name for names, _ in self.taps().values() for name in names}
        incoming, outgoing = {}, {}
        for name, parameter in self.named_parameters():
            if name not in shared:
                incoming[name] = parameter.dim() - 1 if name in elementwise else 0
            if parameter.dim() > 1 and name not in elementwise:
                if name not in known:
                    raise ValueError(
                        f"the cell does not say in `taps` what its parameter {name} reads, so its units cannot be reset"
                    )
                if name not in reads_input:
                    outgoing[name] = 1
        return incoming, outgoing

    def time_parameters(self) -> list[str]:
        """The parameters that set how long a unit remembers: biases of its gates and element-wise weights."""
        biases = [name for name, parameter in self.named_parameters() if parameter.dim() == 1]
        return list(dict.fromkeys([*biases, *self.elementwise_parameters()]))


class ElementwiseCell(Cell):
    """A cell that couples no two units: what `DiagonalCell` and `BlockCell` share.

    Each unit has `PARTS` numbers of state, and the state [B, PARTS*N] is one part after the other. The drives
    u^g = W^g x + b^g are dense in the input; the recurrence is element-wise, with weight vectors v^k. So the
    sensitivity of the state to (W, b, v) keeps the shape of (W, b, v) per copy and part, and RTRL is exact at the cost
    of the parameters (Irie, Gopalakrishnan, Schmidhuber 2024, arXiv 2305.19044, section 3).

    A new cell declares `GATES` (names of the drives) and `VECTORS` (names of the element-wise weights) and writes
    `recurrence`, in torch's element-wise operations. `kernels.recurrence` compiles it: forward, backward, one acting
    step and all derivatives that RTRL needs. What it cannot compile runs step by step in torch, and a line says why.
    `READS` says what a linear layer for its `output` reads, if it has one: the input, the new state, or both.

    `solver` says how T steps are taken: one after the other (`loop`), or all at once by Newton's, Jacobi's or
    Gauss-Seidel's iterations (`kernels.recurrence.solve`); states and gradients are the same up to rounding.

    The element-wise functions run over P places, one a unit; a cell whose units have a row of a matrix as their state
    has more, and several places share a drive (`cells.matrix`).
    """

    PARTS: ClassVar[int] = 1
    OUTPUTS: ClassVar[int] = 1
    GATES: ClassVar[tuple[str, ...]] = ()
    VECTORS: ClassVar[tuple[str, ...]] = ()
    READS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        solver: Literal["loop", "newton", "jacobi", "gauss_seidel"] = "loop",
    ) -> None:
        super().__init__(input_size, self.PARTS * size, self.OUTPUTS * size, size)
        self.solver = None if solver == "loop" else Solver(solver)
        self.size = self.places = size
        self.weight_input = nn.Parameter(torch.empty(len(self.GATES) * size, input_size))  # [G*N, D]
        self.bias = nn.Parameter(torch.zeros(len(self.GATES) * size))  # [G*N]
        self.weight_recurrent: Tensor  # [K, N]
        if self.VECTORS:
            self.weight_recurrent = nn.Parameter(torch.empty(len(self.VECTORS), size))
        else:
            self.register_buffer("weight_recurrent", torch.empty(0, size), persistent=False)
        nn.init.normal_(self.weight_input, std=1.0 / max(1, input_size) ** 0.5)
        nn.init.normal_(self.weight_recurrent, std=0.1)
        widths = {"input": input_size, "state": self.state_size}
        for name in self.READS:
            bound = sum(widths[read] for read in self.READS) ** -0.5
            self.register_parameter(f"output_{name}", nn.Parameter(torch.empty(self.output_size, widths[name])))
            nn.init.uniform_(self.get_parameter(f"output_{name}"), -bound, bound)
        if self.READS:
            self.output_bias = nn.Parameter(torch.zeros(self.output_size))

    def drive(self, x: Tensor) -> Tensor:
        """All drives at once, [..., G*P]."""
        return nn.functional.linear(x, self.weight_input, self.bias)

    def recurrence(self, *arguments: Any, **named: Any) -> Any:
        """`recurrence(drives, vectors, *parts)`: the parts of the state after a step, element by element, from the
        drives [..., P] (one a gate), the weight vectors [P] and the parts before it [..., P]."""
        raise NotImplementedError

    def transition(self, u: Tensor, vectors: tuple[Tensor, ...], state: Tensor) -> Tensor:
        """The state [..., S] after a step, from the drives [..., G*P], the weight vectors [P] and the state before."""
        after = self.recurrence(u.split(self.places, -1), vectors, *state.split(self.places, -1))
        return torch.cat(after, -1) if isinstance(after, tuple) else after

    def compiled_recurrence(self) -> Recurrence:
        """The recurrence in all its forms, traced when it is first asked for.

        Raises:
            ValueError: its Python control flow depends on the data.
        """
        found = _RECURRENCES.get(self)
        if found is None:
            counts = (len(self.GATES), len(self.VECTORS), self.PARTS)
            found = _RECURRENCES[self] = Recurrence(type(self).recurrence, *counts, self, self.places)
        return found

    def run(self, u_TBGN: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """T steps from the drives [T, B, G*P]: the parts of the state after each step, [T, B, P] each, and the last
        state [B, S]."""
        weights = self.spread()[2]
        return self.compiled_recurrence().sequence(u_TBGN, weights, state_BS, is_init_TB, solver=self.solver)

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        """The cell's output [..., H] from the input and the new state; its first part by default."""
        return state[..., : self.size]

    def compiled(self) -> bool:
        kind, weight = type(self), self.bias
        ours = ElementwiseCell.output, ElementwiseCell.drive, ElementwiseCell.transition
        if (kind.output, kind.drive, kind.transition) != ours or not available(weight):
            return False
        return self.compiled_recurrence().acting(weight) is not None

    def read_out_calls(
        self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor, weight_PH: Tensor, bias_P: Tensor
    ) -> tuple[Calls, Tensor, tuple[Tensor, ...]]:
        weight, bias, v_KN = self.spread()
        u_BM = x_TBD.new_empty(x_TBD.shape[1], len(weight))
        drive = Dense(weight, bias, rows=len(u_BM))
        step = recurrence(self.compiled_recurrence(), u_BM, v_KN, state_TBS, is_init_TB)
        read, read_TBP = read_out(state_TBS[1:, :, : self.output_size], weight_PH, bias_P)
        pack = [*drive.pack(backward=False), *step.pack, *read.pack]
        return Calls(pack, [drive.forward(Each(x_TBD), u_BM), *step.step, *read.step]), read_TBP, ()

    def output_drive(self, x: Tensor, state: Tensor) -> Tensor:
        """The linear layer of the output on what it reads (`READS`), [..., H]."""
        layers = {"input": x, "state": state}
        parts = [nn.functional.linear(layers[name], getattr(self, f"output_{name}")) for name in self.READS]
        return sum(parts[1:], parts[0]) + self.output_bias

    def scan(self, u_TBGN: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> Tensor:
        """The states [T, B, S] after each step, from the drives [T, B, G*P]. Subclasses with a kernel override this."""
        parts, _ = self.run(u_TBGN, state_BS, is_init_TB)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @torch.no_grad()
    def states(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> Tensor:
        return self.scan(self.drive(x_TBD), state_BS, is_init_TB)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        state_BS = self.transition(self.drive(x_BD), self.spread()[2].unbind(0), state_BS)
        return self.output(x_BD, state_BS), state_BS

    def masked_step(self, x_BD: Tensor, state_BS: Tensor, is_init_B: Tensor) -> tuple[Tensor, Tensor]:
        _, state_BS = self.run(self.drive(x_BD)[None], state_BS, is_init_B[None])
        return self.output(x_BD, state_BS), state_BS

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        kind = type(self)
        if kind.output is ElementwiseCell.output and kind.scan is ElementwiseCell.scan:  # needs no other part
            parts, last_BS = self.run(self.drive(x_TBD), state_BS, is_init_TB)
            return parts[0], last_BS
        states_TBS = self.scan(self.drive(x_TBD), state_BS, is_init_TB)
        return self.output(x_TBD, states_TBS), states_TBS[-1]

    def recurrent_parameters(self) -> list[str]:
        """The parameters that the carry covers: their gradient is exact under RTRL."""
        return ["weight_input", "bias", *self.elementwise_parameters()]

    def spread(self) -> tuple[Tensor, Tensor, Tensor]:
        """The recurrent parameters with a row for every gate and place: [G*P, D], [G*P] and [K, P]."""
        return self.weight_input, self.bias, self.weight_recurrent

    def fold(self, grad_GPD: Tensor, grad_MP: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the `recurrent_parameters`, in their order, from those of what `spread` gives.

        Args:
            grad_GPD: of the input weights.
            grad_MP: of the biases, then of the weight vectors, M = G + K.
        """
        gates = len(self.GATES)
        grads = grad_GPD.flatten(0, 1), grad_MP[:gates].flatten(), grad_MP[gates:]
        return grads[: len(self.recurrent_parameters())]

    @torch.no_grad()
    def local_derivatives(
        self, u_TBGN: Tensor, vectors_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of every state at a fixed state before it, all T steps at once.

        Args:
            u_TBGN: drives [T, B, G*P].
            vectors_KN: the element-wise weights, [K, P].
            state_TBS: the state before each step, before any reset.
            is_init_TB: reset flags.

        Returns:
            `(J, l, lv)`, [T, B, parts, parts | G | K, P], the third axis being the part that is differentiated: by the
            parts before the step (zero where they were reset), by the drives, by the weights.
        """
        return self.compiled_recurrence().local(u_TBGN, vectors_KN, state_TBS, is_init_TB)

    def advance_carry(
        self, weight_BGND: Tensor, small_BMN: Tensor, chunk: CellChunk, boundary_BS: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Move the RTRL carry over a chunk, in place.

        Args:
            weight_BGND: sensitivities of the state to the input weights; for each part of the state, all G gates.
            small_BMN: those to the biases, then to the element-wise weights, M = G + K; again for each part.
            chunk: what the carry is moved over.
            boundary_BS: dL/dstate_0, whose product with the old carry is then returned.

        Returns:
            `(grad_GND, grad_MN, largest entry of |dstate_t/dstate_{t-1}|)`; the first two are None without a boundary.
        """
        return self.compiled_recurrence().advance(
            weight_BGND.unflatten(1, (self.PARTS, -1)),
            small_BMN.unflatten(1, (self.PARTS, -1)),
            chunk.x_TBD,
            chunk.weight_input,
            chunk.bias,
            chunk.weight_recurrent,
            chunk.state_TBS,
            chunk.is_init_TB,
            boundary_BS=boundary_BS,
        )

    def carry_gradient(
        self, weight_BGND: Tensor, small_BMN: Tensor, boundary_BS: Tensor, index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`(grad_GND, grad_MN)`: dL/dstate_0 times the carry of the copies `index` (int64; all in order by default)."""
        weight, small, state = (each.unflatten(1, (self.PARTS, -1)) for each in (weight_BGND, small_BMN, boundary_BS))
        return boundary(weight, small, state, index)

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        taps: dict[str, tuple[list[str], str | None]] = {"input": (["weight_input"], "bias")}
        if self.READS:
            taps["output"] = ([f"output_{name}" for name in self.READS], "output_bias")
        return taps

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        seen = {"input": x_MD}
        if self.READS:
            layers = {"input": x_MD}
            if "state" in self.READS:
                layers["state"] = self.transition(self.drive(x_MD), self.spread()[2].unbind(0), state_MS)
            seen["output"] = torch.cat([layers[name] for name in self.READS], -1)
        return seen

    def elementwise_parameters(self) -> list[str]:
        return ["weight_recurrent"] if self.VECTORS else []


#: a cell's recurrence, not among its attributes: a copy of the cell has one of its own
_RECURRENCES: weakref.WeakKeyDictionary[ElementwiseCell, Recurrence] = weakref.WeakKeyDictionary()


class DiagonalCell(ElementwiseCell):
    """A cell whose state is updated element by element: c'_n = r(u^1_n .. u^G_n, v^1_n .. v^K_n, c_n).

    See `ElementwiseCell`; `recurrence(drives, vectors, c)` gives c'.
    """

    jacobian: ClassVar[str] = "diagonal"

    def local_derivatives(
        self, u_TBGN: Tensor, vectors_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `ElementwiseCell.local_derivatives`, without the axes of the one part:
        `(a_TBN, l_TBGN, lv_TBKN)`, dc_t/dc_{t-1}, dc_t/du^g_t, dc_t/dv^k."""
        J, local, vector = super().local_derivatives(u_TBGN, vectors_KN, state_TBS, is_init_TB)
        return J[:, :, 0, 0], local[:, :, 0], vector[:, :, 0]


class BlockCell(ElementwiseCell):
    """A cell whose units have a state of several parts: (h, c, ..)'_n = r(u^1_n .., v^1_n .., h_n, c_n, ..).

    The state [B, PARTS*N] is h, then c, up to eight parts; its Jacobian has a block for every unit. The output is h.
    See `ElementwiseCell`; `recurrence(drives, vectors, h, c)` gives (h', c').
    """

    jacobian: ClassVar[str] = "block"
    PARTS: ClassVar[int] = 2
