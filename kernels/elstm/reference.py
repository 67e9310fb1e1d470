"""eLSTM, written as in the paper; the oracle of the other backends."""

from __future__ import annotations

import torch


def sequence(
    u_TB2N: torch.Tensor, v_2N: torch.Tensor, c0_BN: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(c_TBN, c_BN), differentiable by autograd."""
    v_f, v_z = v_2N.chunk(2)
    c_BN, states = c0_BN, []
    for u_B2N, is_init_B in zip(u_TB2N, is_init_TB, strict=True):
        u_f, u_z = u_B2N.chunk(2, dim=-1)
        c_BN = c_BN.masked_fill(is_init_B[:, None], 0.0)
        f = torch.sigmoid(u_f + v_f * c_BN)
        z = torch.tanh(u_z + v_z * c_BN)
        c_BN = f * c_BN + (1 - f) * z
        states.append(c_BN)
    return torch.stack(states), c_BN


def step(u_B2N: torch.Tensor, v_2N: torch.Tensor, c_BN: torch.Tensor, is_init_B: torch.Tensor) -> torch.Tensor:
    """c_BN after one step."""
    return sequence(u_B2N[None], v_2N, c_BN, is_init_B[None])[1]


def local(
    u_TB2N: torch.Tensor, v_2N: torch.Tensor, c_prev_TBN: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a_TBN, l_TB2N): a = m (f + v_f fh + v_z zh) with fh = (m c - z) f (1 - f) and zh = (1 - f)(1 - z^2)."""
    v_f, v_z = v_2N.chunk(2)
    u_f, u_z = u_TB2N.chunk(2, dim=-1)
    c_TBN = c_prev_TBN.masked_fill(is_init_TB[..., None], 0.0)
    f = torch.sigmoid(u_f + v_f * c_TBN)
    z = torch.tanh(u_z + v_z * c_TBN)
    f_hat = (c_TBN - z) * f * (1 - f)
    z_hat = (1 - f) * (1 - z * z)
    a_TBN = (f + v_f * f_hat + v_z * z_hat).masked_fill(is_init_TB[..., None], 0.0)
    return a_TBN, torch.cat([f_hat, z_hat], dim=-1)


def layer(
    x_TBD: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    v_2N: torch.Tensor,
    weight_out: torch.Tensor,
    recurrent_out: torch.Tensor,
    bias_out: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(h_TBN, c_BN, c_TBN, u_TB2N), differentiable by autograd."""
    u_TB2N = x_TBD @ weight.T + bias
    c_TBN, c_BN = sequence(u_TB2N, v_2N, c0_BN, is_init_TB)
    o_TBN = torch.sigmoid(x_TBD @ weight_out.T + c_TBN @ recurrent_out.T + bias_out)
    return o_TBN * c_TBN, c_BN, c_TBN, u_TB2N.detach()
