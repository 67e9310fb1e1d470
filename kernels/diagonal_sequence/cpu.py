"""Diagonal GRU, compiled (`cpu.c`). Backward recomputes the gates, which costs less than storing them."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer

_FORWARD = build.function("lifelong.kernels.diagonal_sequence", "diagonal_gru_forward", "iiii" + "p" * 6)
_BACKWARD = build.function("lifelong.kernels.diagonal_sequence", "diagonal_gru_backward", "iiii" + "p" * 12)
_LOCAL = build.function("lifelong.kernels.diagonal_sequence", "diagonal_gru_local", "iiii" + "p" * 7)
_ROWS = 4  # batch rows per block of the weight gradient, as in cpu.c


def forward(u_TB3N: torch.Tensor, v_3N: torch.Tensor, h0_BN: torch.Tensor, is_init_TB: torch.Tensor) -> torch.Tensor:
    """h_TBN."""
    T, B, N = u_TB3N.shape[0], *h0_BN.shape
    u, v, h0, init = u_TB3N.contiguous(), v_3N.contiguous(), h0_BN.contiguous(), is_init_TB.contiguous()
    h, zeros = torch.empty((T, B, N), dtype=u.dtype), torch.zeros(N, dtype=u.dtype)
    _FORWARD[u.dtype](
        T, B, N, torch.get_num_threads(),
        u.data_ptr(), v.data_ptr(), h0.data_ptr(), init.data_ptr(), zeros.data_ptr(), h.data_ptr(),
    )  # fmt: skip
    return h


def backward(
    u_TB3N: torch.Tensor,
    v_3N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    h_TBN: torch.Tensor,
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dv_3N, dh0_BN)."""
    T, B, N = h_TBN.shape
    u, v, h0, init = u_TB3N.contiguous(), v_3N.contiguous(), h0_BN.contiguous(), is_init_TB.contiguous()
    dh = None if dh_TBN is None else dh_TBN.contiguous()
    dfinal = None if dfinal_BN is None else dfinal_BN.contiguous()
    du, dv, dh0, zeros = torch.empty_like(u), torch.empty_like(v), torch.empty_like(h0), torch.zeros(N, dtype=u.dtype)
    partial = torch.empty((-(-B // _ROWS), 3 * N), dtype=u.dtype)
    _BACKWARD[u.dtype](
        T, B, N, torch.get_num_threads(),
        u.data_ptr(), v.data_ptr(), h0.data_ptr(), init.data_ptr(), zeros.data_ptr(), h_TBN.data_ptr(),
        pointer(dh), pointer(dfinal),
        du.data_ptr(), partial.data_ptr(), dv.data_ptr(), dh0.data_ptr(),
    )  # fmt: skip
    return du, dv, dh0


def local(
    u_TB3N: torch.Tensor, v_3N: torch.Tensor, h_prev_TBN: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a_TBN, l_TB3N)."""
    T, B, N = h_prev_TBN.shape
    u, v, h, init = u_TB3N.contiguous(), v_3N.contiguous(), h_prev_TBN.contiguous(), is_init_TB.contiguous()
    a, l, zeros = torch.empty_like(h), torch.empty_like(u), torch.zeros(N, dtype=u.dtype)  # noqa: E741
    _LOCAL[u.dtype](
        T, B, N, torch.get_num_threads(),
        u.data_ptr(), v.data_ptr(), h.data_ptr(), init.data_ptr(), zeros.data_ptr(), a.data_ptr(), l.data_ptr(),
    )  # fmt: skip
    return a, l
