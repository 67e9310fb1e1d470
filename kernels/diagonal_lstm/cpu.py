"""Diagonal LSTM, compiled (`cpu.c`). Backward recomputes the gates, which costs less than storing them."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row

_FORWARD = build.function("lifelong.kernels.diagonal_lstm", "diagonal_lstm_forward", "iiii" + "p" * 7)
_BACKWARD = build.function("lifelong.kernels.diagonal_lstm", "diagonal_lstm_backward", "iiii" + "p" * 13)
_LOCAL = build.function("lifelong.kernels.diagonal_lstm", "diagonal_lstm_local", "iiii" + "p" * 8)
_ROWS = 4  # batch rows per block of the weight gradient, as in cpu.c


def forward(
    u_TB3N: torch.Tensor, v_5N: torch.Tensor, state_B2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(h_TBN, c_TBN)."""
    T, B, N = u_TB3N.shape[0], u_TB3N.shape[1], state_B2N.shape[1] // 2
    u, v, state, init = u_TB3N.contiguous(), v_5N.contiguous(), state_B2N.contiguous(), is_init_TB.contiguous()
    h, c = torch.empty((T, B, N), dtype=u.dtype), torch.empty((T, B, N), dtype=u.dtype)
    _FORWARD[u.dtype](
        T, B, N, torch.get_num_threads(), u.data_ptr(), v.data_ptr(), state.data_ptr(), init.data_ptr(),
        zero_row(N, u.dtype), h.data_ptr(), c.data_ptr(),
    )  # fmt: skip
    return h, c


def backward(
    u_TB3N: torch.Tensor,
    v_5N: torch.Tensor,
    state_B2N: torch.Tensor,
    is_init_TB: torch.Tensor,
    h_TBN: torch.Tensor,
    c_TBN: torch.Tensor,
    dh_TBN: torch.Tensor | None,
    dlast_B2N: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dv_5N, dstate_B2N)."""
    T, B, N = h_TBN.shape
    u, v, state, init = u_TB3N.contiguous(), v_5N.contiguous(), state_B2N.contiguous(), is_init_TB.contiguous()
    dh = None if dh_TBN is None else dh_TBN.contiguous()
    dlast = None if dlast_B2N is None else dlast_B2N.contiguous()
    du, dv, dstate = torch.empty_like(u), torch.empty_like(v), torch.empty_like(state)
    partial = torch.empty((-(-B // _ROWS), 5 * N), dtype=u.dtype)
    _BACKWARD[u.dtype](
        T, B, N, torch.get_num_threads(), u.data_ptr(), v.data_ptr(), state.data_ptr(), init.data_ptr(),
        zero_row(N, u.dtype), h_TBN.data_ptr(), c_TBN.data_ptr(), pointer(dh), pointer(dlast),
        du.data_ptr(), partial.data_ptr(), dv.data_ptr(), dstate.data_ptr(),
    )  # fmt: skip
    return du, dv, dstate


def local(
    u_TB3N: torch.Tensor, v_5N: torch.Tensor, state_TB2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(J_TB22N, l_TB23N, k_TB25N)."""
    T, B, N = state_TB2N.shape[0], state_TB2N.shape[1], state_TB2N.shape[2] // 2
    u, v, state, init = u_TB3N.contiguous(), v_5N.contiguous(), state_TB2N.contiguous(), is_init_TB.contiguous()
    J, l, k = (torch.empty((T, B, 2, parts, N), dtype=u.dtype) for parts in (2, 3, 5))  # noqa: E741
    _LOCAL[u.dtype](
        T, B, N, torch.get_num_threads(), u.data_ptr(), v.data_ptr(), state.data_ptr(), init.data_ptr(),
        zero_row(N, u.dtype), J.data_ptr(), l.data_ptr(), k.data_ptr(),
    )  # fmt: skip
    return J, l, k
