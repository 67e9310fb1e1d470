"""LSTM with the loop and matrix products of the torch backend and its point-wise steps compiled (`cpu.c`)."""

from __future__ import annotations

import sys

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row
from lifelong.kernels.lstm_sequence import torch_backend

_FORWARD = build.function("lifelong.kernels.lstm_sequence", "lstm_forward", "iii" + "p" * 9)
_BACKWARD = build.function("lifelong.kernels.lstm_sequence", "lstm_backward", "iii" + "p" * 10)


def forward_step(
    u: torch.Tensor,
    c_prev: torch.Tensor,
    init: torch.Tensor,
    next_init: torch.Tensor | None,
    act: torch.Tensor,
    c: torch.Tensor,
    h: torch.Tensor,
    masked: torch.Tensor,
) -> None:
    """As in the torch backend."""
    B, N = c.shape
    _FORWARD[c.dtype](
        B, N, torch.get_num_threads(), u.data_ptr(), c_prev.data_ptr(), init.data_ptr(), pointer(next_init),
        zero_row(N, c.dtype), act.data_ptr(), c.data_ptr(), h.data_ptr(), masked.data_ptr(),
    )  # fmt: skip


def backward_step(
    act: torch.Tensor,
    c_prev: torch.Tensor,
    init: torch.Tensor,
    next_init: torch.Tensor | None,
    c: torch.Tensor,
    dh: torch.Tensor | None,
    dh_next: torch.Tensor,
    dc: torch.Tensor,
    dpre: torch.Tensor,
) -> None:
    """As in the torch backend."""
    B, N = c.shape
    _BACKWARD[c.dtype](
        B, N, torch.get_num_threads(), act.data_ptr(), c_prev.data_ptr(), init.data_ptr(), pointer(next_init),
        zero_row(N, c.dtype), c.data_ptr(), pointer(dh), dh_next.data_ptr(), dc.data_ptr(), dpre.data_ptr(),
    )  # fmt: skip


def forward(
    u_TB4N: torch.Tensor, weight_hh: torch.Tensor, state_B2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """(h_TBN, state_B2N, what backward needs)."""
    steps = sys.modules[__name__]
    return torch_backend.forward(u_TB4N, weight_hh, state_B2N, is_init_TB.contiguous(), steps)


def backward(
    weight_hh: torch.Tensor,
    is_init_TB: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    dh_TBN: torch.Tensor | None,
    dstate_B2N: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB4N, dweight_hh, dstate_B2N)."""
    steps = sys.modules[__name__]
    return torch_backend.backward(weight_hh, is_init_TB.contiguous(), saved, dh_TBN, dstate_B2N, steps)
