"""RTRL carry, compiled: one blocked pass over S (`cpu.c`)."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer
from lifelong.kernels.loop import Direct, Each

_ADVANCE = build.function("lifelong.kernels.rtrl", "rtrl_advance", "iiiiiiiii" + "p" * 9)
_BOUNDARY = build.function("lifelong.kernels.rtrl", "rtrl_boundary", "iiiiii" + "pppp")
_VECTOR = build.function("lifelong.kernels.rtrl", "rtrl_advance_vector", "iiiii" + "p" * 6)
_ROWS, _COLUMNS = 64, 256  # state rows (as in cpu.c) and inputs per piece of work
_GROUPS, _GROUP = 8, 8  # most groups of copies, and fewest copies per group


def advance(
    S_BGND: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBGN: torch.Tensor,
    x_TBD: torch.Tensor,
    boundary_BN: torch.Tensor | None,
    out_BGND: torch.Tensor,
) -> torch.Tensor | None:
    """Writes the carry after the chunk to `out`; returns grad_GND if a boundary is given."""
    B, G, N, D = S_BGND.shape
    T, dtype = a_TBN.shape[0], a_TBN.dtype
    a, l, x, S = a_TBN.contiguous(), l_TBGN.contiguous(), x_TBD.contiguous(), S_BGND.contiguous()  # noqa: E741
    out = out_BGND if out_BGND.is_contiguous() else torch.empty(S.shape, dtype=S.dtype)
    boundary = None if boundary_BN is None else boundary_BN.contiguous()
    panel = 64 if dtype == torch.float32 else 32
    group = max(_GROUP, -(-B // _GROUPS))
    groups = -(-B // group)
    pieces = -(-N // _ROWS) * -(-D // _COLUMNS) * groups
    partial = None if boundary is None else torch.empty((groups, G, N, D), dtype=dtype)
    packed = torch.empty(B * -(-D // panel) * panel * T, dtype=dtype)
    weights = torch.empty(pieces * (1 + T * G) * _ROWS, dtype=dtype)
    _ADVANCE[dtype](
        T, B, G, N, D, torch.get_num_threads(), S.dtype == torch.bfloat16, _COLUMNS, group,
        S.data_ptr(), out.data_ptr(), a.data_ptr(), l.data_ptr(), x.data_ptr(),
        pointer(boundary), pointer(partial),
        packed.data_ptr(), weights.data_ptr(),
    )  # fmt: skip
    if out is not out_BGND:
        out_BGND.copy_(out)
    return None if partial is None else partial.sum(0)


def advance_vector(
    S_BKN: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBKN: torch.Tensor,
    boundary_BN: torch.Tensor | None,
    out_BKN: torch.Tensor,
) -> torch.Tensor | None:
    """Writes the carry after the chunk to `out`; returns grad_KN if a boundary is given."""
    B, K, N = S_BKN.shape
    a, l, S = a_TBN.contiguous(), l_TBKN.contiguous(), S_BKN.contiguous()  # noqa: E741
    out = out_BKN if out_BKN.is_contiguous() else torch.empty(S.shape, dtype=S.dtype)
    boundary = None if boundary_BN is None else boundary_BN.contiguous()
    grad = None if boundary is None else torch.empty((K, N), dtype=S.dtype)
    _VECTOR[S.dtype](
        a.shape[0], B, K, N, torch.get_num_threads(), S.data_ptr(), out.data_ptr(), a.data_ptr(), l.data_ptr(),
        pointer(boundary), pointer(grad),
    )  # fmt: skip
    if out is not out_BKN:
        out_BKN.copy_(out)
    return grad


def boundary(S_BGND: torch.Tensor, boundary_BN: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND, reading S once; with an index only the named copies."""
    _, G, N, D = S_BGND.shape
    S, rows = S_BGND.contiguous(), boundary_BN.contiguous()
    chosen = None if index is None else index.contiguous()
    grad = torch.empty((G, N, D), dtype=rows.dtype)
    _BOUNDARY[rows.dtype](
        rows.shape[0], G, N, D, torch.get_num_threads(), S.dtype == torch.bfloat16,
        S.data_ptr(), rows.data_ptr(), pointer(chosen), grad.data_ptr(),
    )  # fmt: skip
    return grad


def advance_call(
    S_BGND: torch.Tensor, a_TBN: torch.Tensor, l_TBGN: torch.Tensor, x_TBD: Each, boundary_BN: torch.Tensor
) -> tuple[Direct, torch.Tensor]:
    """`advance` in place as a call for `kernels.loop`, and where the gradient goes, [groups, G, N, D], to be summed
    over groups of copies; `x_TBD` has rows [T * B, D]."""
    B, G, N, D = S_BGND.shape
    T, dtype = a_TBN.shape[0], a_TBN.dtype
    panel, group = 64 if dtype == torch.float32 else 32, max(_GROUP, -(-B // _GROUPS))
    groups = -(-B // group)
    pieces = -(-N // _ROWS) * -(-D // _COLUMNS) * groups
    partial = torch.empty((groups, G, N, D), dtype=dtype)
    packed = torch.empty(B * -(-D // panel) * panel * T, dtype=dtype)
    weights = torch.empty(pieces * (1 + T * G) * _ROWS, dtype=dtype)
    sizes = (T, B, G, N, D, torch.get_num_threads(), 0, _COLUMNS, group)
    tensors = (S_BGND, S_BGND, a_TBN, l_TBGN, x_TBD, boundary_BN, partial, packed, weights)
    return Direct(_ADVANCE[dtype], (*sizes, *tensors)), partial


def read_small_call(s_BKN: torch.Tensor, boundary_BN: torch.Tensor, grad_KN: torch.Tensor) -> Direct:
    """grad = the boundary times the carry of `advance_vector`, which stays as it is, as a call for `kernels.loop`."""
    B, K, N = s_BKN.shape
    arguments = (0, B, K, N, torch.get_num_threads(), s_BKN, s_BKN, s_BKN, s_BKN, boundary_BN, grad_KN)
    return Direct(_VECTOR[s_BKN.dtype], arguments)


def boundary_call(S_BGND: torch.Tensor, boundary_BN: torch.Tensor, index: Each, grad_GND: torch.Tensor) -> Direct:
    """`boundary` of the copies `index` as a call for `kernels.loop`; `boundary_BN` has their rows."""
    _, G, N, D = S_BGND.shape
    sizes = (len(boundary_BN), G, N, D, torch.get_num_threads(), 0)
    return Direct(_BOUNDARY[boundary_BN.dtype], (*sizes, S_BGND, boundary_BN, index, grad_GND))
