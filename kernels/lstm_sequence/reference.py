"""LSTM over a sequence with resets, written as defined; the oracle of the other backends."""

from __future__ import annotations

import torch


def sequence(
    u_TB4N: torch.Tensor, weight_hh: torch.Tensor, state_B2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(h_TBN, state_B2N), differentiable by autograd."""
    outputs = []
    for u_B4N, is_init_B in zip(u_TB4N, is_init_TB, strict=True):
        h_BN, c_BN = state_B2N.masked_fill(is_init_B[:, None], 0.0).chunk(2, dim=-1)
        i, f, g, o = (u_B4N + h_BN @ weight_hh.T).chunk(4, dim=-1)
        c_BN = f.sigmoid() * c_BN + i.sigmoid() * g.tanh()
        h_BN = o.sigmoid() * c_BN.tanh()
        state_B2N = torch.cat([h_BN, c_BN], dim=-1)
        outputs.append(h_BN)
    return torch.stack(outputs), state_B2N
