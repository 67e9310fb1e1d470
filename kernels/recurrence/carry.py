"""The RTRL carry of a state of P parts: `kernels.rtrl` for one, `kernels.rtrl_block` for more.

All shapes have the axis of the parts, also where P is 1. Nothing here is differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.kernels.rtrl import rtrl_advance, rtrl_advance_vector, rtrl_boundary
from lifelong.kernels.rtrl_block import rtrl_block_advance, rtrl_block_advance_vector, rtrl_block_boundary


def move(
    S_BPGND: Tensor, J_TBPPN: Tensor, l_TBPGN: Tensor, x_TBD: Tensor, boundary_BPN: Tensor | None, backend: str = "auto"
) -> Tensor | None:
    """S <- J S + l (outer) x over all steps, in place; grad_GND = sum of boundary and the old S, if there is one."""
    if S_BPGND.shape[1] == 1:
        a, l, S = J_TBPPN[:, :, 0, 0], l_TBPGN[:, :, 0], S_BPGND[:, 0]  # noqa: E741
        edge = None if boundary_BPN is None else boundary_BPN[:, 0]
        return rtrl_advance(S, a, l, x_TBD, boundary_BN=edge, backend=backend)[1]
    grad = None if boundary_BPN is None else rtrl_block_boundary(S_BPGND, boundary_BPN, backend=backend)
    rtrl_block_advance(S_BPGND, J_TBPPN, l_TBPGN, x_TBD, backend=backend)
    return grad


def move_small(s_BPMN: Tensor, J_TBPPN: Tensor, lk_TBPMN: Tensor, backend: str = "auto") -> None:
    """s <- J s + lk over all steps, in place."""
    if s_BPMN.shape[1] == 1:
        rtrl_advance_vector(s_BPMN[:, 0], J_TBPPN[:, :, 0, 0], lk_TBPMN[:, :, 0], backend=backend)
    else:
        rtrl_block_advance_vector(s_BPMN, J_TBPPN, lk_TBPMN, backend=backend)


@torch.no_grad()
def boundary(
    S_BPGND: Tensor, s_BPMN: Tensor, boundary_BPN: Tensor, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`(grad_GND, grad_MN)`: dL/dstate_0 times the carry of the copies `index` (int64; all in order by default)."""
    small = s_BPMN if index is None else s_BPMN[index]
    grad_MN = torch.einsum("bpn,bpmn->mn", boundary_BPN, small)
    if S_BPGND.shape[1] == 1:
        return rtrl_boundary(S_BPGND[:, 0], boundary_BPN[:, 0], index), grad_MN
    return rtrl_block_boundary(S_BPGND, boundary_BPN, index), grad_MN
