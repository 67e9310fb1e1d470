"""GRU with the loop and matrix products of the torch backend and its point-wise steps compiled (`cpu.c`)."""

from __future__ import annotations

import sys

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row
from lifelong.kernels.gru_sequence import torch_backend

_FORWARD = build.function("lifelong.kernels.gru_sequence", "gru_forward", "iii" + "p" * 8)
_BACKWARD = build.function("lifelong.kernels.gru_sequence", "gru_backward", "iii" + "p" * 10)


def forward_step(
    u: torch.Tensor,
    bias: torch.Tensor,
    previous: torch.Tensor,
    next_init: torch.Tensor | None,
    act: torch.Tensor,
    q: torch.Tensor,
    h: torch.Tensor,
    masked: torch.Tensor,
) -> None:
    """As in the torch backend."""
    B, N = h.shape
    _FORWARD[h.dtype](
        B, N, torch.get_num_threads(), u.data_ptr(), bias.data_ptr(), previous.data_ptr(), pointer(next_init),
        act.data_ptr(), q.data_ptr(), h.data_ptr(), masked.data_ptr(),
    )  # fmt: skip


def backward_step(
    act: torch.Tensor,
    q: torch.Tensor,
    previous: torch.Tensor,
    next_init: torch.Tensor | None,
    dh: torch.Tensor | None,
    dh_next: torch.Tensor,
    du: torch.Tensor,
    dhh: torch.Tensor,
    direct: torch.Tensor,
) -> None:
    """As in the torch backend."""
    B, N = q.shape
    _BACKWARD[q.dtype](
        B, N, torch.get_num_threads(), act.data_ptr(), q.data_ptr(), previous.data_ptr(), pointer(next_init),
        zero_row(N, q.dtype), pointer(dh), dh_next.data_ptr(), du.data_ptr(), dhh.data_ptr(), direct.data_ptr(),
    )  # fmt: skip


def forward(
    u_TB3N: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_hn_N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(h_TBN, what backward needs)."""
    steps = sys.modules[__name__]
    return torch_backend.forward(u_TB3N, weight_hh, bias_hn_N, h0_BN, is_init_TB.contiguous(), steps)


def backward(
    weight_hh: torch.Tensor,
    is_init_TB: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dweight_hh, dbias_hn_N, dh0_BN)."""
    steps = sys.modules[__name__]
    return torch_backend.backward(weight_hh, is_init_TB.contiguous(), saved, dh_TBN, dfinal_BN, steps)
