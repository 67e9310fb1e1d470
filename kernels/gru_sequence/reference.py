"""GRU over a sequence with resets, written as defined; the oracle of the other backends."""

from __future__ import annotations

import torch


def sequence(
    u_TB3N: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_hn_N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(h_TBN, h_BN), differentiable by autograd."""
    h_BN, outputs = h0_BN, []
    for u_B3N, is_init_B in zip(u_TB3N, is_init_TB, strict=True):
        h_BN = h_BN.masked_fill(is_init_B[:, None], 0.0)
        u_r, u_z, u_n = u_B3N.chunk(3, dim=-1)
        w_r, w_z, w_n = (h_BN @ weight_hh.T).chunk(3, dim=-1)
        r, z = torch.sigmoid(u_r + w_r), torch.sigmoid(u_z + w_z)
        n = torch.tanh(u_n + r * (w_n + bias_hn_N))
        h_BN = (1 - z) * n + z * h_BN
        outputs.append(h_BN)
    return torch.stack(outputs), h_BN
