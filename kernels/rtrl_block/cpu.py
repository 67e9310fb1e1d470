"""RTRL carry with 2x2 blocks, compiled: one pass over S (`cpu.c`)."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer

_ADVANCE = build.function("lifelong.kernels.rtrl_block", "rtrl_block_advance", "iiiiiiii" + "p" * 5)
_VECTOR = build.function("lifelong.kernels.rtrl_block", "rtrl_block_advance_vector", "iiiii" + "p" * 3)
_BOUNDARY = build.function("lifelong.kernels.rtrl_block", "rtrl_block_boundary", "iiiiii" + "p" * 4)
_UNITS = 64  # units per piece of work, as in cpu.c


def advance(S_B2GND: torch.Tensor, J_TB22N: torch.Tensor, l_TB2GN: torch.Tensor, x_TBD: torch.Tensor) -> None:
    """S <- A S + sum_t (P_t l_t) (outer) x_t."""
    B, _, G, N, D = S_B2GND.shape
    T, dtype, threads = len(x_TBD), x_TBD.dtype, torch.get_num_threads()
    J, l, x, S = J_TB22N.contiguous(), l_TB2GN.contiguous(), x_TBD.contiguous(), S_B2GND.contiguous()  # noqa: E741
    share = (4 + 2 * T * G) * _UNITS + (T + 2) * D
    scratch = torch.empty(threads * share, dtype=dtype)
    _ADVANCE[dtype](
        T, B, G, N, D, threads, S.dtype == torch.bfloat16, share,
        S.data_ptr(), J.data_ptr(), l.data_ptr(), x.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    if S is not S_B2GND:
        S_B2GND.copy_(S)


def advance_vector(S_B2KN: torch.Tensor, J_TB22N: torch.Tensor, l_TB2KN: torch.Tensor) -> None:
    """S_t = J_t S_{t-1} + l_t."""
    B, _, K, N = S_B2KN.shape
    J, l, S = J_TB22N.contiguous(), l_TB2KN.contiguous(), S_B2KN.contiguous()  # noqa: E741
    _VECTOR[S.dtype](len(J), B, K, N, torch.get_num_threads(), S.data_ptr(), J.data_ptr(), l.data_ptr())
    if S is not S_B2KN:
        S_B2KN.copy_(S)


def boundary(S_B2GND: torch.Tensor, boundary_B2N: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND, reading S once; with an index only the named copies."""
    _, _, G, N, D = S_B2GND.shape
    S, rows = S_B2GND.contiguous(), boundary_B2N.contiguous()
    chosen = None if index is None else index.contiguous()
    grad = torch.empty((G, N, D), dtype=rows.dtype)
    _BOUNDARY[rows.dtype](
        len(rows), G, N, D, torch.get_num_threads(), S.dtype == torch.bfloat16,
        S.data_ptr(), rows.data_ptr(), pointer(chosen), grad.data_ptr(),
    )  # fmt: skip
    return grad
