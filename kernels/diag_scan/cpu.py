"""Diagonal scan, compiled (`cpu.c`)."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row

_FORWARD = build.function("lifelong.kernels.diag_scan", "diag_scan_forward", "iiiiii" + "p" * 6)
_BACKWARD = build.function("lifelong.kernels.diag_scan", "diag_scan_backward", "iiiiii" + "p" * 10)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous()


def forward(
    a_TBN: torch.Tensor,
    b_TBN: torch.Tensor,
    h0_BN: torch.Tensor | None,
    is_init_TB: torch.Tensor | None,
    reverse: bool,
) -> torch.Tensor:
    """h_TBN."""
    T, B, N = a_TBN.shape
    a, b, h = _dense(a_TBN), _dense(b_TBN), torch.empty((T, B, N), dtype=a_TBN.dtype)
    h0 = None if h0_BN is None else _dense(h0_BN)
    init = None if is_init_TB is None else is_init_TB.contiguous()
    is_complex = a.dtype.is_complex
    _FORWARD[a.dtype](
        T, B, N << is_complex, torch.get_num_threads(), reverse, is_complex,
        a.data_ptr(), b.data_ptr(), pointer(h0), pointer(init), zero_row(N, a.dtype), h.data_ptr(),
    )  # fmt: skip
    return h


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
    T, B, N = h_TBN.shape
    a, da, db = _dense(a_TBN), torch.empty_like(h_TBN), torch.empty_like(h_TBN)
    dh0 = torch.empty((B, N), dtype=a.dtype)
    h0, dh, dfinal = (None if tensor is None else _dense(tensor) for tensor in (h0_BN, dh_TBN, dfinal_BN))
    init = None if is_init_TB is None else is_init_TB.contiguous()
    is_complex = a.dtype.is_complex
    _BACKWARD[a.dtype](
        T, B, N << is_complex, torch.get_num_threads(), reverse, is_complex,
        a.data_ptr(), pointer(h0), pointer(init), zero_row(N, a.dtype), h_TBN.data_ptr(), pointer(dh),
        pointer(dfinal), da.data_ptr(), db.data_ptr(), dh0.data_ptr(),
    )  # fmt: skip
    return da, db, dh0
