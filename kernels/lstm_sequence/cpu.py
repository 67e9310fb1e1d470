"""Compiled (`cpu.c`)."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row
from lifelong.kernels.dense import packed
from lifelong.kernels.lstm_sequence import torch_backend

FORWARD = build.function("lifelong.kernels.lstm_sequence", "lstm_forward", "iiii" + "p" * 12)
BACKWARD = build.function("lifelong.kernels.lstm_sequence", "lstm_backward", "iiii" + "p" * 10)
CALL = build.function("lifelong.kernels.lstm_sequence", "lstm_call", "pp")


def forward(
    u_TB4N: torch.Tensor, weight_hh: torch.Tensor, state_B2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """(h_TBN, state_B2N, what backward needs)."""
    (T, B, _), N, dtype = u_TB4N.shape, weight_hh.shape[1], u_TB4N.dtype
    u, state, init = u_TB4N.contiguous(), state_B2N.contiguous(), is_init_TB.contiguous()
    act, last, w = torch.empty_like(u), torch.empty_like(state), packed(weight_hh, transposed=True)
    c, h, masked = (u.new_empty(T, B, N) for _ in range(3))
    first, c0 = u.new_empty(B, N), u.new_empty(B, N)
    FORWARD[dtype](
        T, B, N, torch.get_num_threads(), u.data_ptr(), w.data_ptr(), state.data_ptr(), init.data_ptr(),
        zero_row(N, dtype), act.data_ptr(), c.data_ptr(), h.data_ptr(), masked.data_ptr(), first.data_ptr(),
        c0.data_ptr(), last.data_ptr(),
    )  # fmt: skip
    return h, last, (act, c, first, masked, c0)


def backward(
    weight_hh: torch.Tensor,
    is_init_TB: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    dh_TBN: torch.Tensor | None,
    dstate_B2N: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB4N, dweight_hh, dstate_B2N)."""
    act, c, first, masked, c0 = saved
    (T, B, N), dtype = c.shape, c.dtype
    dh, init = None if dh_TBN is None else dh_TBN.contiguous(), is_init_TB.contiguous()
    if dstate_B2N is None:
        dh0, dc0 = torch.zeros_like(c0), torch.zeros_like(c0)
    else:
        dh0, dc0 = (part.clone(memory_format=torch.contiguous_format) for part in dstate_B2N.chunk(2, dim=-1))
    du, w = torch.empty_like(act), packed(weight_hh)
    BACKWARD[dtype](
        T, B, N, torch.get_num_threads(), w.data_ptr(), init.data_ptr(), zero_row(N, dtype), act.data_ptr(),
        c.data_ptr(), c0.data_ptr(), pointer(dh), du.data_ptr(), dh0.data_ptr(), dc0.data_ptr(),
    )  # fmt: skip
    return du, torch_backend.weight_gradient(du, first, masked), torch.cat([dh0, dc0], dim=-1)
