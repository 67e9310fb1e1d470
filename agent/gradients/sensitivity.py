"""Engines whose carry is a sensitivity of the state to the recurrent parameters, exact or approximate, of any cell.

Exact real-time recurrent learning (Williams & Zipser 1989) moves S = dstate/dtheta by S_t = J_t S_{t-1} + I_t. Engines
for dense cells differ in how they keep S and what they leave out of J. All of them read the local derivatives of a
chunk once, all T steps together (`agent.cells.local`), and have a carry of a few tensors, which this base looks after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import Cell
from lifelong.agent.cells.local import Local, derivatives_of
from lifelong.agent.gradients.base import GradientEngine, boundary

Carry = dict[str, Tensor]


@dataclass
class Trace:
    """The local derivatives of a chunk of the copies `index` (None: all in order)."""

    local: Local
    index: Tensor | None


class Sensitivity(GradientEngine):
    """Base of engines for every cell. A subclass says what its carry is made of (`shapes`), how it moves over a chunk
    (`moved`), and what dL/dstate_0 makes of it (`product`).

    Args:
        cell: the recurrent cell.
        copies: B.
    """

    #: carry tensors that count something, and stay when a copy is reset
    COUNTERS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cell: Cell, copies: int) -> None:
        super().__init__(cell, copies)
        self.derivatives = derivatives_of(cell)
        self.taps = self.derivatives.taps
        self.recurrent = [cell.get_parameter(name) for name in self.derivatives.names()]
        like, self.carry = self.recurrent[0], Carry()
        for name, (shape, _) in self.shapes().items():
            dtype = torch.int64 if name in self.COUNTERS else like.dtype
            self.carry[name] = torch.zeros(copies, *shape, device=like.device, dtype=dtype)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Of every tensor of the carry: its shape without the copies, and a letter for each of these dimensions: S the
        state, R the rows of a tap's matrix (both are N entries after N), N units, and a dot for anything else."""
        raise NotImplementedError

    def moved(self, carry: Carry, local: Local, index: Tensor | None) -> Carry:
        """The carry of some copies after a chunk; `carry` itself may be overwritten."""
        raise NotImplementedError

    def product(self, grad_BS: Tensor, carry: Carry) -> list[Tensor]:
        """sum_b dL/dstate_0[b] S[b] for the matrix of every tap, [G*N, M]."""
        raise NotImplementedError

    @classmethod
    def carry_numbers(cls, cell: Cell) -> int:
        engine = cls.__new__(cls)
        engine.derivatives = derivatives_of(cell)
        engine.cell, engine.taps = cell, engine.derivatives.taps
        return sum(torch.Size(shape).numel() for shape, _ in engine.shapes().values())

    def exact(self) -> bool:
        """Whether nothing is left out: by default if no two units read each other, as far as units are told apart."""
        return not self.derivatives.recurrent()

    def attach(self, state_BS: Tensor, index: Tensor | None = None) -> Tensor:
        return boundary(state_BS, self, index, self.recurrent)

    @torch.no_grad()
    def boundary(self, grad_BS: Tensor, index: Tensor | None) -> tuple[Tensor, ...]:
        return self.derivatives.gradients(self.product(grad_BS, self._rows(index)))

    def trace(
        self,
        x_TBD: Tensor,
        state_TBS: Tensor,
        is_init_TB: Tensor,
        index: Tensor | None = None,
        *,
        only_pass: bool = False,
    ) -> Trace:
        return Trace(self.derivatives(x_TBD.detach(), state_TBS, is_init_TB), index)

    @torch.no_grad()
    def advance(self, trace: Trace) -> None:
        for name, tensor in self.moved(self._rows(trace.index), trace.local, trace.index).items():
            if trace.index is not None:
                self.carry[name][trace.index] = tensor
            elif tensor is not self.carry[name]:
                self.carry[name].copy_(tensor)

    def _rows(self, index: Tensor | None) -> Carry:
        return self.carry if index is None else {name: x[index] for name, x in self.carry.items()}

    def reset(self, mask_B: Tensor) -> None:
        for name, tensor in self.carry.items():
            if name not in self.COUNTERS:
                tensor.masked_fill_(mask_B.view(-1, *([1] * (tensor.dim() - 1))), 0.0)

    def reset_units(self, units: Tensor, index: Tensor | None = None) -> None:
        copies = slice(None) if index is None else index
        N = self.cell.units
        for name, (shape, letters) in self.shapes().items():
            tensor = self.carry[name]
            for dim, (size, letter) in enumerate(zip(shape, letters, strict=True), 1):
                if letter in "SN" or (letter == "R" and self.derivatives.knows_units):
                    parts = N * torch.arange(size // N, device=units.device)
                    tensor[copies] = tensor[copies].index_fill(dim, (parts[:, None] + units).flatten(), 0.0)

    def report(self) -> dict[str, Tensor]:
        largest = [x.abs().max() for name, x in self.carry.items() if name not in self.COUNTERS]
        return {**super().report(), "carry_max": torch.stack(largest).max()}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.carry)

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        for name, tensor in self.carry.items():
            tensor.copy_(saved[name])

    def exact_parameters(self) -> list[str]:
        return self.cell.recurrent_parameters() if self.exact() else []

    def approximate_parameters(self) -> list[str]:
        return [] if self.exact() else self.cell.recurrent_parameters()


def suffix_products(J_TBSS: Tensor) -> tuple[Tensor, Tensor]:
    """`(P_TBSS, A_BSS)`: P_t = J_T ... J_{t+1} for every step, and A = J_T ... J_1."""
    product_BSS = torch.eye(J_TBSS.shape[-1], dtype=J_TBSS.dtype, device=J_TBSS.device).expand_as(J_TBSS[0])
    products = [product_BSS]
    for J_BSS in reversed(J_TBSS.unbind(0)):
        products.append(products[-1] @ J_BSS)
    return torch.stack(products[-2::-1]), products[-1]


def contributions(local: Local) -> tuple[Tensor, list[Tensor]]:
    """`(A_BSS, Q_TBSR of every tap)`, with which S_T = A S_0 + sum_t Q_t (outer) z_t."""
    P, N = local.own_TBPPN.shape[-2:]
    products, A_BSS = suffix_products(local.jacobian())
    unit = products.unflatten(-1, (P, N))
    found = [(unit.unsqueeze(4) * E_TBPGN.unsqueeze(2)).sum(3).flatten(3) for E_TBPGN in local.drive_TBPGN]
    return A_BSS, found


def outer_sum(Q_TBK: Tensor, z_TBM: Tensor) -> Tensor:
    """sum_t Q_t (outer) z_t, [B, K, M], as one product of matrices a copy."""
    return Q_TBK.permute(1, 2, 0) @ z_TBM.transpose(0, 1)
