"""Compiled (`cpu.c`)."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row
from lifelong.kernels.dense import packed
from lifelong.kernels.gru_sequence import torch_backend

FORWARD = build.function("lifelong.kernels.gru_sequence", "gru_forward", "iiii" + "p" * 10)
BACKWARD = build.function("lifelong.kernels.gru_sequence", "gru_backward", "iiii" + "p" * 12)
CALL = build.function("lifelong.kernels.gru_sequence", "gru_call", "pp")


def forward(
    u_TB3N: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_hn_N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(h_TBN, what backward needs)."""
    (T, B, _), N = u_TB3N.shape, weight_hh.shape[1]
    u, bias, h0, init = u_TB3N.contiguous(), bias_hn_N.contiguous(), h0_BN.contiguous(), is_init_TB.contiguous()
    act, first, w = torch.empty_like(u), torch.empty_like(h0), packed(weight_hh, transposed=True)
    q, h, masked = (u.new_empty(T, B, N) for _ in range(3))
    FORWARD[u.dtype](
        T, B, N, torch.get_num_threads(), u.data_ptr(), w.data_ptr(), bias.data_ptr(), h0.data_ptr(), init.data_ptr(),
        act.data_ptr(), q.data_ptr(), h.data_ptr(), masked.data_ptr(), first.data_ptr(),
    )  # fmt: skip
    return h, (act, q, first, masked)


def backward(
    weight_hh: torch.Tensor,
    is_init_TB: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dweight_hh, dbias_hn_N, dh0_BN)."""
    act, q, first, masked = saved
    (T, B, N), dtype = q.shape, q.dtype
    dh, init = None if dh_TBN is None else dh_TBN.contiguous(), is_init_TB.contiguous()
    dh0 = torch.zeros_like(first) if dfinal_BN is None else dfinal_BN.contiguous().clone()
    du, dhh, scratch, w = torch.empty_like(act), torch.empty_like(act), torch.empty_like(first), packed(weight_hh)
    BACKWARD[dtype](
        T, B, N, torch.get_num_threads(), w.data_ptr(), init.data_ptr(), zero_row(N, dtype), act.data_ptr(),
        q.data_ptr(), first.data_ptr(), masked.data_ptr(), pointer(dh), du.data_ptr(), dhh.data_ptr(), dh0.data_ptr(),
        scratch.data_ptr(),
    )  # fmt: skip
    return du, *torch_backend.weight_gradients(dhh, first, masked), dh0
