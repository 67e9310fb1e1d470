"""SnAp-2 (Menick, Elsen, Evci, Osindero, Simonyan, Graves, ICLR 2021, arXiv 2006.07232, section 3.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.exact import Exact
from lifelong.agent.gradients.sensitivity import Carry, outer_sum, suffix_products


class SnAp2(Exact):
    """Keeps of the sensitivity what a parameter reaches within two steps: its own unit, and the units that read it over
    a recurrent weight that is not zero. So it is for sparse recurrent weights, such as those of strategy `dst`; without
    any zero every unit is reached and it is `exact`. The carry is stored as that of `exact`, with zeros in it.
    """

    whole: ClassVar[bool] = False
    approximation = (
        "SnAp-2: what reaches the present through a parameter's own unit and those that read it; exact while no "
        "recurrent weight is zero"
    )

    def moved(self, carry: Carry, local: Local, index: Tensor | None) -> Carry:
        reached_NN = reach(local)
        return super().moved(carry, local, index) if bool(reached_NN.all()) else restricted(carry, local, reached_NN)

    def exact(self) -> bool:
        return not self.derivatives.recurrent()

    def report(self) -> dict[str, Tensor]:
        kept = torch.stack([(x != 0).float().mean() for x in self.carry.values()]).max()
        return {**super().report(), "carry_kept": kept}


def reach(local: Local) -> Tensor:
    """Whether unit n is reached from unit m within one recurrent step, bool [N, N], n = m included."""
    N = local.own_TBPPN.shape[-1]
    reached = torch.eye(N, dtype=torch.bool, device=local.own_TBPPN.device)
    for _, weight_GNN in local.weight_GNN:
        reached = reached | (weight_GNN != 0).any(0)
    return reached


def restricted(carry: Carry, local: Local, reached_NN: Tensor) -> Carry:
    """The carry of `Exact` after a chunk, if parameters of unit m are carried by the units that m reaches alone.

    For every m that is RTRL of a smaller network, of the K units reached (or as many, for those that reach fewer, with
    rows and columns of zeros), all of them side by side.
    """
    T, B, P, _, N = local.own_TBPPN.shape
    K = int(reached_NN.sum(0).max())
    # the unit itself first, then the others that it reaches
    order = reached_NN.T.float() + torch.eye(N, device=reached_NN.device)
    size_MK, unit_MK = order.topk(K, dim=1)
    valid_MK = (size_MK > 0).to(local.keep_TB1.dtype)
    J = local.jacobian().view(T, B, P, N, P, N)
    small = J[:, :, :, unit_MK.unsqueeze(2), :, unit_MK.unsqueeze(1)]  # [M, K, K, T, B, P, P]
    small = small * (valid_MK.unsqueeze(2) * valid_MK.unsqueeze(1))[..., None, None, None, None]
    small = small.permute(3, 4, 0, 5, 1, 6, 2).reshape(T, B, N, P * K, P * K)
    products, A_BMSS = suffix_products(small)
    from_own = products.unflatten(-1, (P, K))[..., 0]  # [T, B, M, PK, P]: a parameter moves its own unit first
    new = {}
    for (name, S_BSRM), E_TBPGN, z_TBM in zip(carry.items(), local.drive_TBPGN, local.read_TBM, strict=True):
        G = E_TBPGN.shape[3]
        Q = from_own @ E_TBPGN.permute(0, 1, 4, 2, 3)  # [T, B, N, PK, G]
        added = outer_sum(Q.flatten(2), z_TBM).view(B, N, P * K, -1)
        old = S_BSRM.view(B, P, N, G, N, -1)[:, :, unit_MK, :, torch.arange(N, device=unit_MK.device).unsqueeze(1)]
        old = old * valid_MK[..., None, None, None, None]  # [N, K, B, P, G, M]
        old = old.permute(2, 0, 3, 1, 4, 5).reshape(B, N, P * K, -1)
        both = torch.baddbmm(added.flatten(0, 1), A_BMSS.flatten(0, 1), old.flatten(0, 1)).view(B, N, P, K, G, -1)
        both = both.permute(1, 3, 0, 2, 4, 5) * valid_MK[..., None, None, None, None]
        result = torch.zeros_like(S_BSRM).view(B, P, N, G, N, -1)
        # what is not reached is zero already; a place that stands in for it must not be written
        rows, columns = valid_MK.nonzero(as_tuple=True)
        result[:, :, unit_MK[rows, columns], :, rows] = both[rows, columns]
        new[name] = result.view_as(S_BSRM)
    return new
