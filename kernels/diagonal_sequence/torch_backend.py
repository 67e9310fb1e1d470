"""Diagonal GRU in torch operations with a hand-written backward: only a one-operation reverse scan is in its loop."""

from __future__ import annotations

import torch

from lifelong.kernels.diagonal_sequence.reference import local, sequence

__all__ = ["backward", "forward", "local"]


def forward(u_TB3N: torch.Tensor, v_3N: torch.Tensor, h0_BN: torch.Tensor, is_init_TB: torch.Tensor) -> torch.Tensor:
    """h_TBN."""
    return sequence(u_TB3N, v_3N, h0_BN, is_init_TB)[0]


def backward(
    u_TB3N: torch.Tensor,
    v_3N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    h_TBN: torch.Tensor,
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dv_3N, dh0_BN)."""
    N = h_TBN.shape[-1]
    h_prev_TBN = torch.cat([h0_BN[None], h_TBN[:-1]])
    a_TBN, l_TB3N = local(u_TB3N, v_3N, h_prev_TBN, is_init_TB)
    d_TBN = torch.zeros_like(h_TBN) if dh_TBN is None else dh_TBN.clone(memory_format=torch.contiguous_format)
    if dfinal_BN is not None:
        d_TBN[-1] += dfinal_BN
    for t in range(len(d_TBN) - 2, -1, -1):
        d_TBN[t].addcmul_(a_TBN[t + 1], d_TBN[t + 1])
    du_TB3N = l_TB3N * d_TBN.repeat(1, 1, 3)
    masked = h_prev_TBN.masked_fill(is_init_TB[..., None], 0.0)
    r = torch.sigmoid(u_TB3N[..., N : 2 * N] + v_3N[N : 2 * N] * masked)
    dv_3N = (du_TB3N * torch.cat([masked, masked, masked * r], dim=-1)).sum(dim=(0, 1))
    return du_TB3N, dv_3N, a_TBN[0] * d_TBN[0]
