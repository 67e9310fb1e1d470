"""Diagonal scan as a loop; the oracle of the other backends."""

from __future__ import annotations

import torch


def sequence(
    a_TBN: torch.Tensor,
    b_TBN: torch.Tensor,
    h0_BN: torch.Tensor | None,
    is_init_TB: torch.Tensor | None,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(h_TBN, h_BN), differentiable by autograd."""
    h_BN = torch.zeros_like(b_TBN[0]) if h0_BN is None else h0_BN
    steps = list(range(len(a_TBN)))[:: -1 if reverse else 1]
    states: list[torch.Tensor] = []
    for t in steps:
        if is_init_TB is not None:
            h_BN = h_BN.masked_fill(is_init_TB[t][:, None], 0.0)
        h_BN = a_TBN[t] * h_BN + b_TBN[t]
        states.append(h_BN)
    return torch.stack(states[::-1] if reverse else states), h_BN
