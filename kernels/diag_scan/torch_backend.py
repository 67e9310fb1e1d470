"""Diagonal scan in torch operations, one per step, with a hand-written backward."""

from __future__ import annotations

import torch


def _steps(T: int, reverse: bool) -> list[int]:
    return list(range(T))[:: -1 if reverse else 1]


def _masked(a_TBN: torch.Tensor, is_init_TB: torch.Tensor | None) -> torch.Tensor:
    return a_TBN if is_init_TB is None else a_TBN.masked_fill(is_init_TB[..., None], 0.0)


def forward(
    a_TBN: torch.Tensor,
    b_TBN: torch.Tensor,
    h0_BN: torch.Tensor | None,
    is_init_TB: torch.Tensor | None,
    reverse: bool,
) -> torch.Tensor:
    """h_TBN."""
    h_TBN = torch.empty(a_TBN.shape, dtype=a_TBN.dtype, device=a_TBN.device)
    h_BN = torch.zeros_like(b_TBN[0]) if h0_BN is None else h0_BN
    for t in _steps(len(a_TBN), reverse):
        if is_init_TB is not None:
            h_BN = h_BN.masked_fill(is_init_TB[t][:, None], 0.0)
        h_BN = torch.addcmul(b_TBN[t], a_TBN[t], h_BN, out=h_TBN[t])
    return h_TBN


def backward(
    a_TBN: torch.Tensor,
    h0_BN: torch.Tensor | None,
    is_init_TB: torch.Tensor | None,
    reverse: bool,
    h_TBN: torch.Tensor,
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(da_TBN, db_TBN, dh0_BN)."""
    first = torch.zeros_like(h_TBN[:1]) if h0_BN is None else h0_BN[None]
    previous_TBN = torch.cat([h_TBN[1:], first] if reverse else [first, h_TBN[:-1]])
    decay_TBN = _masked(a_TBN, is_init_TB).conj().resolve_conj()
    d_TBN = torch.zeros_like(h_TBN) if dh_TBN is None else dh_TBN.clone(memory_format=torch.contiguous_format)
    steps = _steps(len(a_TBN), reverse)
    if dfinal_BN is not None:
        d_TBN[steps[-1]] += dfinal_BN
    for t, after in zip(steps[-2::-1], steps[:0:-1], strict=True):
        d_TBN[t].addcmul_(decay_TBN[after], d_TBN[after])
    da_TBN = d_TBN * _masked(previous_TBN, is_init_TB).conj()
    return da_TBN, d_TBN, decay_TBN[steps[0]] * d_TBN[steps[0]]
