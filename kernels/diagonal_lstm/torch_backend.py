"""Diagonal LSTM in torch operations with a hand-written backward: its loop is a reverse scan with 2x2 blocks."""

from __future__ import annotations

import torch

from lifelong.kernels.diagonal_lstm.reference import local, sequence

__all__ = ["backward", "forward", "local"]


def forward(
    u_TB3N: torch.Tensor, v_5N: torch.Tensor, state_B2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(h_TBN, c_TBN)."""
    states = [state_B2N]
    for u_B3N, is_init_B in zip(u_TB3N, is_init_TB, strict=True):
        states.append(sequence(u_B3N[None], v_5N, states[-1], is_init_B[None])[1])
    h_TBN, c_TBN = torch.stack(states[1:]).chunk(2, dim=-1)
    return h_TBN, c_TBN


def backward(
    u_TB3N: torch.Tensor,
    v_5N: torch.Tensor,
    state_B2N: torch.Tensor,
    is_init_TB: torch.Tensor,
    h_TBN: torch.Tensor,
    c_TBN: torch.Tensor,
    dh_TBN: torch.Tensor | None,
    dlast_B2N: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dv_5N, dstate_B2N)."""
    T, B, N = h_TBN.shape
    states_TB2N = torch.cat([state_B2N[None], torch.cat([h_TBN, c_TBN], dim=-1)[:-1]])
    J_TB22N, l_TB23N, k_TB25N = local(u_TB3N, v_5N, states_TB2N, is_init_TB)
    d_TB2N = torch.zeros((T, B, 2, N), dtype=u_TB3N.dtype, device=u_TB3N.device)
    if dh_TBN is not None:
        d_TB2N[:, :, 0] = dh_TBN
    if dlast_B2N is not None:
        d_TB2N[-1] += dlast_B2N.unflatten(-1, (2, N))
    for t in range(T - 2, -1, -1):
        d_TB2N[t] += (J_TB22N[t + 1] * d_TB2N[t + 1, :, :, None]).sum(1)
    du_TB3N = (l_TB23N * d_TB2N[:, :, :, None]).sum(2).flatten(2)
    dv_5N = (k_TB25N * d_TB2N[:, :, :, None]).sum((0, 1, 2)).flatten()
    return du_TB3N, dv_5N, (J_TB22N[0] * d_TB2N[0, :, :, None]).sum(1).flatten(1)
