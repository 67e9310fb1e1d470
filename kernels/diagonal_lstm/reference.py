"""Diagonal LSTM, written as defined; the oracle of the other backends."""

from __future__ import annotations

import torch


def _step(
    u: torch.Tensor, v_5N: torch.Tensor, h: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(f, g, o, c') from the drives [..., 3N] and the (already masked) state."""
    u_f, u_g, u_o = u.chunk(3, dim=-1)
    a_f, a_g, a_o, p_f, p_o = v_5N.chunk(5)
    f, g = torch.sigmoid(u_f + a_f * h + p_f * c), torch.tanh(u_g + a_g * h)
    after = f * c + (1 - f) * g
    return f, g, torch.sigmoid(u_o + a_o * h + p_o * after), after


def sequence(
    u_TB3N: torch.Tensor, v_5N: torch.Tensor, state_B2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(h_TBN, state_B2N), differentiable by autograd."""
    outputs = []
    for u_B3N, is_init_B in zip(u_TB3N, is_init_TB, strict=True):
        h_BN, c_BN = state_B2N.masked_fill(is_init_B[:, None], 0.0).chunk(2, dim=-1)
        _, _, o, c_BN = _step(u_B3N, v_5N, h_BN, c_BN)
        outputs.append(o * torch.tanh(c_BN))
        state_B2N = torch.cat([outputs[-1], c_BN], dim=-1)
    return torch.stack(outputs), state_B2N


def local(
    u_TB3N: torch.Tensor, v_5N: torch.Tensor, state_TB2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(J_TB22N, l_TB23N, k_TB25N)."""
    h, c = state_TB2N.masked_fill(is_init_TB[..., None], 0.0).chunk(2, dim=-1)
    a_f, a_g, a_o, p_f, p_o = v_5N.chunk(5)
    f, g, o, after = _step(u_TB3N, v_5N, h, c)
    squashed = torch.tanh(after)
    l_f, l_g, l_o = (c - g) * f * (1 - f), (1 - f) * (1 - g * g), squashed * o * (1 - o)  # dc'/du_f, dc'/du_g, dh'/du_o
    through = o * (1 - squashed * squashed) + l_o * p_o  # dh'/dc'
    c_h, c_c, zero = l_f * a_f + l_g * a_g, f + l_f * p_f, torch.zeros_like(h)
    J = torch.stack([through * c_h + l_o * a_o, through * c_c, c_h, c_c], dim=2).masked_fill(
        is_init_TB[:, :, None, None], 0.0
    )
    of_c = [l_f, l_g, zero, l_f * h, l_g * h, zero, l_f * c, zero]
    of_h = [through * part for part in of_c]
    of_h[2], of_h[5], of_h[7] = l_o, l_o * h, l_o * after
    both = torch.stack([torch.stack(of_h, dim=2), torch.stack(of_c, dim=2)], dim=2)
    return J.unflatten(2, (2, 2)), both[:, :, :, :3], both[:, :, :, 3:]
