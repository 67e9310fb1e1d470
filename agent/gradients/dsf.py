"""DSF: diagonal state feedback (Caillon, Fagnou, Allauzen 2025, arXiv 2503.23104)."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.cells.base import Cell
from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.local_feedback import LocalFeedback
from lifelong.envs.options import Share


class DSF(LocalFeedback):
    """In place of the state Jacobian errors go back over a fixed diagonal matrix, delta_t = e_t + d delta_{t+1}, and
    the carry is the trace with the same d. The decays of the units are evenly spread from `low` to `high`.

    Args:
        cell: any cell.
        copies: B.
        low: the smallest decay.
        high: the largest decay.
    """

    approximation = "DSF: a fixed decay of every unit in place of the state Jacobian"
    inside = "errors go back over that decay"

    def __init__(self, cell: Cell, copies: int, *, low: Share = 0.5, high: Share = 0.99) -> None:
        super().__init__(cell, copies)
        if low > high:
            raise ValueError(f"low is {low}, above high, which is {high}")
        like = self.recurrent[0]
        self.decay_N = torch.linspace(low, high, cell.units, device=like.device, dtype=like.dtype)

    def blocks(self, local: Local) -> Tensor:
        return self._decay_TBPPN(local.keep_TB1)

    def stand_in(self, x_TBD: Tensor, before_TBS: Tensor, is_init_TB: Tensor) -> Tensor:
        return self._decay_TBPPN((~is_init_TB).to(x_TBD.dtype).unsqueeze(-1))

    def _decay_TBPPN(self, keep_TB1: Tensor) -> Tensor:
        P, N = self.derivatives.parts, self.derivatives.units
        of_state = torch.arange(P * N, device=self.decay_N.device) % self.cell.units
        decay_NPP = torch.diag_embed(self.decay_N[of_state].view(P, N).T)
        return decay_NPP.permute(1, 2, 0) * keep_TB1[..., None, None]

    def exact(self) -> bool:
        return False
