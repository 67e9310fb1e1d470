"""Local derivatives of any cell: what a state owes, at a fixed state before it, to that state and to the parameters.

A step of a cell reads vectors z (inputs, a constant 1, its own units), makes drives u = W z of them, and then works
unit by unit: s' = f(u, s), where unit n has P parts of state and G drives. So the immediate Jacobian of a state to a
matrix is sparse, an outer product in place of P N G N M entries,

    ds'[p,n] / dW[g,n',m] = (n = n') E[p,g,n] z[m]        E = ds'/du
    ds'[p,n] / ds[q,m]    = (n = m) C[p,q,n] + sum_g E[p,g,n] U[g,n,m]

with C what a part owes to the parts of its own unit at fixed drives, and U the columns of W that read part q. Gradient
engines work on E, z, C and U. A cell about which nothing is known is one unit, of as many parts as it has state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell, ElementwiseCell


@dataclass(frozen=True)
class Tap:
    """Parameters that make the same drives, side by side in one matrix [G*N, M]."""

    names: tuple[str, ...]  # of a bias, of weights that read units, of weights that read the input (which may grow)
    widths: tuple[int, ...]  # columns of each
    rows: int  # G*N


@dataclass(frozen=True)
class Recurrent:
    """The columns of a tap's matrix that read a part of the state."""

    tap: int
    name: str
    part: int


@dataclass
class Local:
    """The local derivatives of a chunk's steps; T steps, B copies, P parts of N units, S = P*N, M columns of a tap."""

    keep_TB1: Tensor  # 0 where the state was reset before the step
    own_TBPPN: Tensor  # C: of a part by the parts of its unit before the step, at fixed drives; zero after a reset
    drive_TBPGN: list[Tensor]  # E of every tap
    read_TBM: list[Tensor]  # z of every tap
    weight_GNN: list[tuple[Recurrent, Tensor]]  # U, as it was

    def blocks(self) -> Tensor:
        """What the parts of a unit owe to the parts of the same unit, weights included, [T, B, P, P, N]."""
        blocks = self.own_TBPPN.clone()
        for recurrent, weight in self.weight_GNN:
            diagonal_GN = weight.diagonal(dim1=1, dim2=2)
            through_TBPN = (self.drive_TBPGN[recurrent.tap] * diagonal_GN).sum(3) * self.keep_TB1.unsqueeze(-1)
            blocks[:, :, :, recurrent.part] += through_TBPN
        return blocks

    def jacobian(self) -> Tensor:
        """The whole state Jacobian, [T, B, S, S]."""
        T, B, P, _, N = self.own_TBPPN.shape
        J = self.own_TBPPN.new_zeros(T, B, P, N, P, N)
        J.diagonal(dim1=3, dim2=5).copy_(self.own_TBPPN)
        keep = self.keep_TB1[..., None, None]
        for recurrent, weight in self.weight_GNN:
            through = torch.einsum("tbpgn,gnm->tbpnm", self.drive_TBPGN[recurrent.tap], weight)
            J[:, :, :, :, recurrent.part] += through * keep
        return J.view(T, B, P * N, P * N)

    def forward(self, t: int, v_BS: Tensor) -> Tensor:
        """The Jacobian of step t times a vector, [B, S], without the Jacobian."""
        _, _, P, _, N = self.own_TBPPN.shape
        v_BPN = v_BS.unflatten(-1, (P, N))
        new_BPN = (self.own_TBPPN[t] * v_BPN.unsqueeze(1)).sum(2)
        for recurrent, weight in self.weight_GNN:
            drive_BN = (v_BPN[:, recurrent.part] * self.keep_TB1[t]) @ weight.flatten(0, 1).T
            new_BPN += (self.drive_TBPGN[recurrent.tap][t] * drive_BN.unflatten(-1, (-1, N)).unsqueeze(1)).sum(2)
        return new_BPN.flatten(1)

    def backward(self, t: int, v_BS: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A vector times the Jacobian of step t, [B, S], and times its E, [B, G*N] a tap."""
        _, _, P, _, N = self.own_TBPPN.shape
        v_BPN = v_BS.unflatten(-1, (P, N))
        drives = [(E_TBPGN[t] * v_BPN.unsqueeze(2)).sum(1).flatten(1) for E_TBPGN in self.drive_TBPGN]
        old_BPN = (self.own_TBPPN[t] * v_BPN.unsqueeze(2)).sum(1)
        for recurrent, weight in self.weight_GNN:
            old_BPN[:, recurrent.part] += (drives[recurrent.tap] @ weight.flatten(0, 1)) * self.keep_TB1[t]
        return old_BPN.flatten(1), drives


class Derivatives:
    """Takes the local derivatives of a cell. By itself it knows nothing of the cell's inside: one unit.

    Args:
        cell: the cell; its sizes are read, and its parameters when it is called.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell, self.parts, self.units, self.knows_units = cell, cell.state_size, 1, False
        self.taps = [Tap((name,), (1,), cell.get_parameter(name).numel()) for name in cell.recurrent_parameters()]

    def names(self) -> list[str]:
        """The parameters, in the order of `gradients`."""
        return [name for tap in self.taps for name in tap.names]

    def gradients(self, grads: list[Tensor]) -> tuple[Tensor, ...]:
        """Gradients of the parameters from those of the matrices of all taps, [G*N, M] each."""
        found = []
        for tap, grad_RM in zip(self.taps, grads, strict=True):
            columns = zip(tap.names, grad_RM.view(tap.rows, -1).split(tap.widths, 1), strict=True)
            found += [column.reshape(self.cell.get_parameter(name).shape) for name, column in columns]
        return tuple(found)

    def recurrent(self) -> list[Recurrent]:
        """The weights that read units, so that these are coupled."""
        return []

    @torch.no_grad()
    def __call__(self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor) -> Local:
        """Of all steps at once, from the inputs, the states before each step (before any reset) and the reset flags."""
        keep_TB1 = (~is_init_TB).to(x_TBD.dtype).unsqueeze(-1)
        own, drives = self.derived(x_TBD, state_TBS, is_init_TB, keep_TB1)
        weights = []
        for recurrent in self.recurrent():
            weight = self.cell.get_parameter(recurrent.name).detach().clone()
            weights.append((recurrent, weight.unflatten(0, (-1, self.units))))
        return Local(keep_TB1, own, drives, self.read(x_TBD, state_TBS * keep_TB1), weights)

    def derived(
        self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor, keep_TB1: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """C and, for every tap, E."""
        step, S = _Step(self.cell), self.cell.state_size
        lead = x_TBD.shape[:2]
        names = [f"cell.{tap.names[0]}" for tap in self.taps]

        def after(state_S: Tensor, moving: dict[str, Tensor], x_D: Tensor) -> Tensor:
            arguments = (x_D[None], state_S[None])
            state: Tensor = torch.func.functional_call(step, moving, arguments)[0]
            return state

        both = torch.func.vmap(torch.func.jacrev(after, argnums=(0, 1)), in_dims=(0, None, 0))
        moving = {f"cell.{tap.names[0]}": self.cell.get_parameter(tap.names[0]).detach() for tap in self.taps}
        own, by_name = both((state_TBS * keep_TB1).flatten(0, 1), moving, x_TBD.flatten(0, 1))
        own_TBSS = own.unflatten(0, lead) * keep_TB1.unsqueeze(-1)
        return own_TBSS.unsqueeze(-1), [by_name[name].reshape(*lead, S, -1, 1) for name in names]

    def read(self, x_TBD: Tensor, state_TBS: Tensor) -> list[Tensor]:
        """For every tap, z [T, B, M], given the states as the steps see them."""
        return [x_TBD.new_ones(*x_TBD.shape[:2], 1) for _ in self.taps]


class _Step(nn.Module):
    """A step as a module's call, which is what `functional_call` works on."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x_BD: Tensor | dict[str, Tensor], state_BS: Tensor) -> Tensor:
        """The state after the step, from the input or from the drives."""
        return self.cell.state_from(x_BD, state_BS) if isinstance(x_BD, dict) else self.cell.step(x_BD, state_BS)[1]


class Elementwise(Derivatives):
    """Of a cell that couples no two units, from its `local_derivatives`."""

    cell: ElementwiseCell

    def __init__(self, cell: ElementwiseCell) -> None:
        self.cell, self.parts, self.units, self.knows_units = cell, cell.PARTS, cell.places, True
        rows = len(cell.GATES) * cell.places
        self.taps = [Tap(("bias", "weight_input"), (1, cell.input_size), rows)]
        if cell.VECTORS:
            self.taps.append(Tap(("weight_recurrent",), (1,), len(cell.VECTORS) * cell.places))

    def names(self) -> list[str]:
        return self.cell.recurrent_parameters()

    def gradients(self, grads: list[Tensor]) -> tuple[Tensor, ...]:
        of_input = grads[0].view(len(self.cell.GATES), self.units, -1)
        small = [of_input[..., 0], *(grad.view(-1, self.units) for grad in grads[1:])]
        return self.cell.fold(of_input[..., 1:], torch.cat(small))

    def derived(
        self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor, keep_TB1: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        cell: Any = self.cell
        weight, bias, vectors_KN = cell.spread()
        drive = nn.functional.linear(x_TBD, weight, bias)
        own, gates, vectors = cell.local_derivatives(drive, vectors_KN, state_TBS, is_init_TB)
        if own.dim() == 3:  # one part a unit, which these cells leave out
            own, gates, vectors = own[:, :, None, None], gates.unsqueeze(2), vectors.unsqueeze(2)
        return own, [gates, vectors][: len(self.taps)]

    def read(self, x_TBD: Tensor, state_TBS: Tensor) -> list[Tensor]:
        one = x_TBD.new_ones(*x_TBD.shape[:2], 1)
        return [torch.cat([one, x_TBD], -1), one][: len(self.taps)]


class Driven(Derivatives):
    """Of a cell that says in `state_from` what drives make of its state, and in `taps` what makes the drives."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.units, self.knows_units = cell, cell.units, True
        self.parts = cell.state_size // self.units
        self.taps, self._order, self._recurrent = [], [], list[Recurrent]()
        parts = self._parts_read()
        for number, (weights, bias) in enumerate(cell.taps().values()):
            inner = [name for name in weights if name in parts]
            ordered = [*inner, *(name for name in weights if name not in parts)]
            widths = [cell.get_parameter(name).shape[1] for name in ordered]
            names = [*([bias] if bias else []), *ordered]
            rows = cell.get_parameter(weights[0]).shape[0]
            self.taps.append(Tap(tuple(names), (*([1] if bias else []), *widths), rows))
            self._order.append([weights.index(name) for name in ordered])
            self._recurrent += [Recurrent(number, name, parts[name]) for name in inner]
        self.taps += [Tap((name,), (1,), self.units) for name in cell.elementwise_parameters()]

    def _parts_read(self) -> dict[str, int]:
        """Of every weight that reads units, which part of the state it reads."""
        cell = self.cell
        weight = next(cell.parameters())
        if weight.is_meta:  # sizes are all that is asked for
            return {}
        x_1D = torch.linspace(2.0, 3.0, cell.input_size).to(weight)[None]
        state_1S = torch.linspace(-0.9, 0.9, cell.state_size).to(weight)[None]
        inputs, found = cell.input_weights(), {}
        seen = cell.presynaptic(x_1D, state_1S)
        for tap, (names, _) in cell.taps().items():
            columns = seen[tap].split([cell.get_parameter(name).shape[1] for name in names], -1)
            for name, read in zip(names, columns, strict=True):
                if name not in inputs:
                    halves = state_1S.split(self.units, -1)
                    part = [i for i, half in enumerate(halves) if torch.equal(read, half)]
                    if not part:
                        sentence = "reads neither its input nor a part of its state"
                        raise ValueError(f"the weight {name} of the cell {sentence}")
                    found[name] = part[0]
        return found

    def recurrent(self) -> list[Recurrent]:
        return self._recurrent

    def derived(
        self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor, keep_TB1: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        cell, N = self.cell, self.units
        state = state_TBS * keep_TB1
        drives = {tap: u.detach().requires_grad_() for tap, u in drives_of(cell, x_TBD, state).items()}
        with torch.enable_grad():
            parts = [part.detach().requires_grad_() for part in state.split(N, -1)]
            moving = {name: cell.get_parameter(name).detach() for name in cell.elementwise_parameters()}
            moving = {f"cell.{n}": p.expand(*x_TBD.shape[:2], -1).requires_grad_() for n, p in moving.items()}
            after = torch.func.functional_call(_Step(cell), moving, (drives, torch.cat(parts, -1))).split(N, -1)
            inputs = [*parts, *drives.values(), *moving.values()]
            rows = [torch.autograd.grad(a.sum(), inputs, retain_graph=True, materialize_grads=True) for a in after]
        own = torch.stack([torch.stack(row[: len(parts)], 2) for row in rows], 2) * keep_TB1[..., None, None]
        by_tap = zip(*(row[len(parts) :] for row in rows), strict=True)
        return own, [torch.stack(of_parts, 2).unflatten(-1, (-1, N)) for of_parts in by_tap]

    def read(self, x_TBD: Tensor, state_TBS: Tensor) -> list[Tensor]:
        seen = self.cell.presynaptic(x_TBD.flatten(0, 1), state_TBS.flatten(0, 1))
        one, found = x_TBD.new_ones(*x_TBD.shape[:2], 1), []
        for vectors, tap, order in zip(seen.values(), self.taps, self._order, strict=False):
            bias = len(tap.names) > len(order)
            widths = dict(zip(order, tap.widths[bias:], strict=True))
            columns = vectors.unflatten(0, x_TBD.shape[:2]).split([widths[i] for i in range(len(order))], -1)
            found.append(torch.cat([*([one] if bias else []), *(columns[i] for i in order)], -1))
        return found + [one] * (len(self.taps) - len(found))


def drives_of(cell: Cell, x: Tensor, state: Tensor) -> dict[str, Tensor]:
    """What the matrices of each tap of the cell make of their presynaptic vectors, [..., G*N]."""
    lead, made = x.shape[:-1], {}
    seen = cell.presynaptic(x.reshape(-1, x.shape[-1]), state.reshape(-1, state.shape[-1]))
    for tap, (names, bias) in cell.taps().items():
        weight = torch.cat([cell.get_parameter(name) for name in names], 1)
        made[tap] = nn.functional.linear(seen[tap], weight, None if bias is None else cell.get_parameter(bias))
    return {tap: drive.view(*lead, -1) for tap, drive in made.items()}


def derivatives_of(cell: Cell) -> Derivatives:
    """The best way to the local derivatives of a cell."""
    if isinstance(cell, ElementwiseCell):
        return Elementwise(cell)
    return Driven(cell) if type(cell).state_from is not Cell.state_from else Derivatives(cell)
