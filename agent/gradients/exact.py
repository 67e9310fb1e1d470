"""Exact real-time recurrent learning of any cell, with the whole sensitivity of the state to the parameters.

Williams & Zipser 1989 (Neural Computation 1), in the chunked form of Schmidhuber 1992 (Neural Computation 4): the steps
of a chunk are summed first, and the carry is multiplied by the product of their Jacobians once. N^4 operations a step
become N^4 / T + N^3.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.sensitivity import Carry, Sensitivity, contributions, outer_sum


class Exact(Sensitivity):
    """Full RTRL: S_T = A S_0 + sum_t P_t I_t, with A = J_T ... J_1 and P_t = J_T ... J_{t+1}. The carry S is as large
    as the state times the parameters, once a copy: for small cells, and what the other engines are measured against.

    Args:
        cell: any cell.
        copies: B.
    """

    whole: ClassVar[bool] = True

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        S = self.cell.state_size
        return {f"tap{k}": ((S, tap.rows, sum(tap.widths)), "SR.") for k, tap in enumerate(self.taps)}

    def moved(self, carry: Carry, local: Local, index: Tensor | None) -> Carry:
        A_BSS, Q = contributions(local)
        new = {}
        for (name, S_BSRM), Q_TBSR, z_TBM in zip(carry.items(), Q, local.read_TBM, strict=True):
            added = outer_sum(Q_TBSR.flatten(2), z_TBM).flatten(1).unflatten(1, (A_BSS.shape[-1], -1))
            new[name] = torch.baddbmm(added, A_BSS, S_BSRM.flatten(2)).view_as(S_BSRM)
        return new

    def product(self, grad_BS: Tensor, carry: Carry) -> list[Tensor]:
        return [torch.einsum("bs,bsrm->rm", grad_BS, S_BSRM) for S_BSRM in carry.values()]

    def exact(self) -> bool:
        return True
