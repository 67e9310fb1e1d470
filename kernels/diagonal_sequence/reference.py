"""Diagonal GRU, written as defined; the oracle of the other backends."""

from __future__ import annotations

import torch


def _gates(
    u_TB3N: torch.Tensor, v_3N: torch.Tensor, h: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(z, r, c) for the (already masked) state h."""
    u_z, u_r, u_c = u_TB3N.chunk(3, dim=-1)
    v_z, v_r, v_c = v_3N.chunk(3)
    z, r = torch.sigmoid(u_z + v_z * h), torch.sigmoid(u_r + v_r * h)
    return z, r, torch.tanh(u_c + v_c * (h * r))


def sequence(
    u_TB3N: torch.Tensor, v_3N: torch.Tensor, h0_BN: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(h_TBN, h_BN), differentiable by autograd."""
    h_BN, states = h0_BN, []
    for u_B3N, is_init_B in zip(u_TB3N, is_init_TB, strict=True):
        h_BN = h_BN.masked_fill(is_init_B[:, None], 0.0)
        z, _, c = _gates(u_B3N, v_3N, h_BN)
        h_BN = (1 - z) * h_BN + z * c
        states.append(h_BN)
    return torch.stack(states), h_BN


def local(
    u_TB3N: torch.Tensor, v_3N: torch.Tensor, h_prev_TBN: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a_TBN, l_TB3N)."""
    h = h_prev_TBN.masked_fill(is_init_TB[..., None], 0.0)
    v_z, v_r, v_c = v_3N.chunk(3)
    z, r, c = _gates(u_TB3N, v_3N, h)
    l_z, l_c = (c - h) * z * (1 - z), z * (1 - c * c)
    l_r = l_c * v_c * h * r * (1 - r)
    a = (1 - z + l_z * v_z + l_r * v_r + l_c * v_c * r).masked_fill(is_init_TB[..., None], 0.0)
    return a, torch.cat([l_z, l_r, l_c], dim=-1)
