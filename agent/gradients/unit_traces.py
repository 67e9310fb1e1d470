"""Carries that keep of a sensitivity what a unit's state owes to the unit's own weights: as large as the parameters.

With what a unit's parts owe to each other standing in for the Jacobian, blocks a_t of P x P, this is RTRL of a cell
that couples no two units, and so are its kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.sensitivity import Carry, Sensitivity, outer_sum, suffix_products
from lifelong.kernels.rtrl import rtrl_advance, rtrl_boundary
from lifelong.kernels.rtrl_block import rtrl_block_advance, rtrl_block_boundary


class UnitTraces(Sensitivity):
    """S_t = a_t S_{t-1} + E_t (outer) z_t for every unit by itself. A subclass says what `blocks` a are."""

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        P, N = self.derivatives.parts, self.derivatives.units
        letters = ".." + ("N" if self.cell.output_size == N else ".") + "."
        if self.cell.output_size != N:
            letters = "S..."
        return {f"tap{k}": ((P, tap.rows // N, N, sum(tap.widths)), letters) for k, tap in enumerate(self.taps)}

    def blocks(self, local: Local) -> Tensor:
        """a [T, B, P, P, N]: what stands in for the derivative of a unit's parts by its parts before the step."""
        raise NotImplementedError

    def moved(self, carry: Carry, local: Local, index: Tensor | None) -> Carry:
        a_TBPPN = self.blocks(local)
        P = a_TBPPN.shape[2]
        for S_BPGNM, E_TBPGN, z_TBM in zip(carry.values(), local.drive_TBPGN, local.read_TBM, strict=True):
            if P == 1:
                rtrl_advance(S_BPGNM[:, 0], a_TBPPN[:, :, 0, 0], E_TBPGN[:, :, 0], z_TBM)
            elif P <= 4:
                rtrl_block_advance(S_BPGNM, a_TBPPN, E_TBPGN, z_TBM)
            else:
                _advance(S_BPGNM, a_TBPPN, E_TBPGN, z_TBM)
        return carry

    def product(self, grad_BS: Tensor, carry: Carry) -> list[Tensor]:
        P, N = self.derivatives.parts, self.derivatives.units
        grad_BPN = grad_BS.unflatten(-1, (P, N))
        if P == 1:
            return [rtrl_boundary(S_BPGNM[:, 0], grad_BPN[:, 0].contiguous()) for S_BPGNM in carry.values()]
        if P <= 4:
            return [rtrl_block_boundary(S_BPGNM, grad_BPN.contiguous()) for S_BPGNM in carry.values()]
        return [torch.einsum("bpn,bpgnm->gnm", grad_BPN, S_BPGNM) for S_BPGNM in carry.values()]


def _advance(S_BPGNM: Tensor, a_TBPPN: Tensor, E_TBPGN: Tensor, z_TBM: Tensor) -> None:
    """What the kernels do for up to four parts a unit, for any number of them, in place."""
    products, A = suffix_products(a_TBPPN.permute(0, 1, 4, 2, 3))  # [T, B, N, P, P], [B, N, P, P]
    Q_TBNPG = products @ E_TBPGN.permute(0, 1, 4, 2, 3)
    added = outer_sum(Q_TBNPG.permute(0, 1, 3, 4, 2).flatten(2), z_TBM).view_as(S_BPGNM)
    old = torch.einsum("bnpq,bqgnm->bpgnm", A, S_BPGNM)
    S_BPGNM.copy_(old + added)
