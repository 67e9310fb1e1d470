"""Engines that have a stand-in for the state Jacobian inside the chunk, too: errors go back unit by unit.

    delta_t = dL/ds_t at a fixed future + a_{t+1}^T delta_{t+1},    dL/dW = sum_t delta_t E_t (outer) z_t

So all T steps are computed in one batched step, and only the element-wise line above is sequential. The carry has the
same stand-in, and the gradient does not depend on where chunks are cut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifelong.agent.cells.base import Acted
from lifelong.agent.gradients.unit_traces import UnitTraces


class _Feedback(torch.autograd.Function):
    """Identity on the states after each step; backward adds to each what later ones send back over `a_TBPPN`."""

    @staticmethod
    def forward(ctx: Any, after_TBS: Tensor, state_BS: Tensor, a_TBPPN: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(a_TBPPN)
        return after_TBS.view_as(after_TBS)

    @staticmethod
    def backward(ctx: Any, grad_TBS: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (a_TBPPN,) = ctx.saved_tensors
        P, _, N = a_TBPPN.shape[2:]
        grad = grad_TBS.unflatten(-1, (P, N))
        deltas, back_BPN = [], torch.zeros_like(grad[0])
        for grad_BPN, a_BPPN in zip(reversed(grad.unbind(0)), reversed(a_TBPPN.unbind(0)), strict=True):
            deltas.append(grad_BPN + back_BPN)
            back_BPN = (a_BPPN * deltas[-1].unsqueeze(2)).sum(1)
        return torch.stack(deltas[::-1]).flatten(2), back_BPN.flatten(1), None


class LocalFeedback(UnitTraces):
    """See the module. A subclass says what `blocks` stand in for the Jacobian."""

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        start_BS = state_BS.detach()
        with torch.no_grad():
            states = self.cell.states(x_TBD, start_BS, is_init_TB) if acted is None else acted.state_TBS
            before_TBS = torch.cat([start_BS.unsqueeze(0), states[:-1]])
            a_TBPPN = self.stand_in(x_TBD.detach(), before_TBS, is_init_TB)
        kept = before_TBS.masked_fill(is_init_TB.unsqueeze(-1), 0.0)
        _, after = self.cell.step(x_TBD.flatten(0, 1), kept.flatten(0, 1))
        after_TBS: Tensor = _Feedback.apply(after.view_as(before_TBS), state_BS, a_TBPPN)  # type: ignore[no-untyped-call]
        return self.cell.output(x_TBD, after_TBS), after_TBS[-1]

    def stand_in(self, x_TBD: Tensor, before_TBS: Tensor, is_init_TB: Tensor) -> Tensor:
        """`blocks` of steps from the states `before_TBS`."""
        return self.blocks(self.derivatives(x_TBD, before_TBS, is_init_TB))
