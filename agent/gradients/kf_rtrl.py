"""KF-RTRL: Kronecker factors (Mujika, Meier, Steger, NeurIPS 2018, arXiv 1805.10842)."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.noise import Noisy
from lifelong.agent.gradients.sensitivity import Carry, contributions


class KFRTRL(Noisy):
    """The carry is one Kronecker product a copy and tap, u (outer) A, with u as wide as what the weights read and A a
    matrix from drives to the state; its mean is the sensitivity (algorithm 1). The immediate Jacobian of a step is such
    a product already, z (outer) D, so that noise comes only from adding two of them,

        u <- c1 p1 u + c2 p2 z    A <- c1 J A / p1 + c2 D / p2    p1 = sqrt(|J A| / |u|)    p2 = sqrt(|D| / |z|)

    with random signs c. Here all steps of a chunk are added to the carry at once, each with a sign and a balance p of
    its own, after their Jacobians have been multiplied; T = 1 is the paper. Unbiased, with less variance than `uoro`.
    """

    approximation = "KF-RTRL: without bias, a random Kronecker product in place of the sensitivity"

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        S, found = self.cell.state_size, dict[str, tuple[tuple[int, ...], str]]()
        for k, tap in enumerate(self.taps):
            found |= {f"u{k}": ((sum(tap.widths),), "."), f"a{k}": ((S, tap.rows), "SR")}
        return {**found, "count": ((), "")}

    def moved(self, carry: Carry, local: Local, index: Tensor | None) -> Carry:
        A_BSS, Q = contributions(local)
        new = {"count": carry["count"]}
        for k, (Q_TBSR, z_TBM) in enumerate(zip(Q, local.read_TBM, strict=True)):
            old_BSR = A_BSS @ carry[f"a{k}"]
            a_IBSR = torch.cat([old_BSR[None], Q_TBSR.flatten(3)])
            u_IBM = torch.cat([carry[f"u{k}"][None], z_TBM])
            size_IB = a_IBSR.flatten(2).norm(dim=2)
            p_IB = torch.where(size_IB > 0, (size_IB / u_IBM.norm(dim=2)).sqrt(), 0.0)
            c_IB = self.signs(carry, index, len(p_IB)).T
            new[f"u{k}"] = torch.einsum("ib,ibm->bm", c_IB * p_IB, u_IBM)
            new[f"a{k}"] = torch.einsum("ib,ibsr->bsr", torch.where(p_IB > 0, c_IB / p_IB, 0.0), a_IBSR)
        return new

    def product(self, grad_BS: Tensor, carry: Carry) -> list[Tensor]:
        found = []
        for k in range(len(self.taps)):
            along_BR = torch.einsum("bs,bsr->br", grad_BS, carry[f"a{k}"])
            found.append(along_BR.T @ carry[f"u{k}"])
        return found
