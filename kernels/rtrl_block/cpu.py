"""RTRL carry with PxP blocks, compiled: one pass over S (`cpu.c`)."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer
from lifelong.kernels.rtrl_block import reference

_ADVANCE = build.function("lifelong.kernels.rtrl_block", "rtrl_block_advance", "iiiiiiiii" + "p" * 5)
_VECTOR = build.function("lifelong.kernels.rtrl_block", "rtrl_block_advance_vector", "iiiiii" + "p" * 3)
_BOUNDARY = build.function("lifelong.kernels.rtrl_block", "rtrl_block_boundary", "iiiiiii" + "p" * 4)
_UNITS, _VECTOR_PARTS = 64, 16  # units per piece of work, and most parts of `advance_vector`, as in cpu.c


def advance(S_BPGND: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPGN: torch.Tensor, x_TBD: torch.Tensor) -> None:
    """S <- A S + sum_t (P_t l_t) (outer) x_t."""
    B, P, G, N, D = S_BPGND.shape
    T, dtype, threads = len(x_TBD), x_TBD.dtype, torch.get_num_threads()
    J, l, x, S = J_TBPPN.contiguous(), l_TBPGN.contiguous(), x_TBD.contiguous(), S_BPGND.contiguous()  # noqa: E741
    share = (P * P + P + P * T * G) * _UNITS + (T + P + 1) * D
    scratch = torch.empty(threads * share, dtype=dtype)
    _ADVANCE[dtype](
        T, B, P, G, N, D, threads, S.dtype == torch.bfloat16, share,
        S.data_ptr(), J.data_ptr(), l.data_ptr(), x.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    if S is not S_BPGND:
        S_BPGND.copy_(S)


def advance_vector(S_BPKN: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPKN: torch.Tensor) -> None:
    """S_t = J_t S_{t-1} + l_t."""
    B, P, K, N = S_BPKN.shape
    if P > _VECTOR_PARTS:
        return reference.advance_vector(S_BPKN, J_TBPPN, l_TBPKN)
    J, l, S = J_TBPPN.contiguous(), l_TBPKN.contiguous(), S_BPKN.contiguous()  # noqa: E741
    _VECTOR[S.dtype](len(J), B, P, K, N, torch.get_num_threads(), S.data_ptr(), J.data_ptr(), l.data_ptr())
    if S is not S_BPKN:
        S_BPKN.copy_(S)


def boundary(S_BPGND: torch.Tensor, boundary_BPN: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND, reading S once; with an index only the named copies."""
    _, P, G, N, D = S_BPGND.shape
    S, rows = S_BPGND.contiguous(), boundary_BPN.contiguous()
    chosen = None if index is None else index.contiguous()
    grad = torch.empty((G, N, D), dtype=rows.dtype)
    _BOUNDARY[rows.dtype](
        len(rows), P, G, N, D, torch.get_num_threads(), S.dtype == torch.bfloat16,
        S.data_ptr(), rows.data_ptr(), pointer(chosen), grad.data_ptr(),
    )  # fmt: skip
    return grad
