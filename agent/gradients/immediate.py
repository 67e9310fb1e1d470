"""Immediate derivatives alone, as an ablation of everything that carries or goes back in time."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.cells.base import Acted
from lifelong.agent.gradients.base import GradientEngine


class Immediate(GradientEngine):
    """Every state is a function of the parameters through its own step, and the state before it a constant, inside the
    chunk too: dL/dtheta = sum_t dL_t/ds_t I_t with the immediate Jacobian I_t. Nothing is carried, and the gradient
    does not depend on where chunks are cut. At one step a chunk it is `bptt`.

    Args:
        cell: any cell.
        copies: B.
    """

    inside = "immediate derivatives: every step by itself"

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        start_BS = state_BS.detach()
        with torch.no_grad():
            states = self.cell.states(x_TBD.detach(), start_BS, is_init_TB) if acted is None else acted.state_TBS
            before_TBS = torch.cat([start_BS.unsqueeze(0), states[:-1]]).masked_fill(is_init_TB.unsqueeze(-1), 0.0)
        y, after = self.cell.step(x_TBD.flatten(0, 1), before_TBS.flatten(0, 1))
        lead = is_init_TB.shape
        return y.unflatten(0, lead), after.unflatten(0, lead)[-1]
