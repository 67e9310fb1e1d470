"""The RTRL carry of a cell whose state has two parts a unit, (h, c): its Jacobian is 2x2 blocks (`rtrl` has 1x1).

With J_t = d(h, c)_t/d(h, c)_{t-1} (zero where the copy was reset), l_t = d(h, c)_t/du_t of each of G gates, a pair, and
du_t/dW = x_t, all products being those of 2x2 matrices and pairs, unit by unit,

    S_t = J_t S_{t-1} + l_t (outer) x_t      =>      S_T = A S_0 + sum_t (P_t l_t) (outer) x_t
    P_t = J_T ... J_{t+1},                           A = J_T ... J_1

and the part of the chunk's gradient that reaches back before the chunk sums dL/d(h, c)_0 S_0 over both parts of the
state. Nothing here is differentiable.
"""

from __future__ import annotations

import torch

from lifelong.kernels.dispatch import Op, check
from lifelong.kernels.rtrl import check_carry

_ADVANCE = Op("rtrl_block_advance", "lifelong.kernels.rtrl_block")
_VECTOR = Op("rtrl_block_advance_vector", "lifelong.kernels.rtrl_block")
_BOUNDARY = Op("rtrl_block_boundary", "lifelong.kernels.rtrl_block")


@torch.no_grad()
def rtrl_block_advance(
    S_B2GND: torch.Tensor, J_TB22N: torch.Tensor, l_TB2GN: torch.Tensor, x_TBD: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """Advances the carry by T steps in place, reading S once and writing it once; returns S.

    S_B2GND: sensitivities of both parts of the state of unit n to the weight (g, n, d), in the dtype of the other
    inputs or in bf16 beside fp32 (accumulated in fp32, rounded once at the end). J_TB22N: state Jacobian [of, by];
    l_TB2GN: local derivatives; x_TBD: inputs. Raises ValueError for wrong shapes, dtypes or a backend that cannot run.
    """
    op = "rtrl_block_advance"
    if S_B2GND.ndim != 5:
        raise ValueError(f"{op}: S must have shape (B, 2, G, N, D), got {tuple(S_B2GND.shape)}")
    (B, _, G, N, D), T = S_B2GND.shape, len(J_TB22N)
    check_carry(op, S_B2GND, (B, 2, G, N, D), x_TBD)
    check(op, "J", J_TB22N, (T, B, 2, 2, N), x_TBD)
    check(op, "l", l_TB2GN, (T, B, 2, G, N), x_TBD)
    check(op, "x", x_TBD, (T, B, D), x_TBD)
    _ADVANCE.module(backend, x_TBD).advance(S_B2GND, J_TB22N, l_TB2GN, x_TBD)
    return S_B2GND


@torch.no_grad()
def rtrl_block_advance_vector(
    S_B2KN: torch.Tensor, J_TB22N: torch.Tensor, l_TB2KN: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """`rtrl_block_advance` for K parameters a unit (biases, element-wise weights): S_t = J_t S_{t-1} + l_t."""
    op = "rtrl_block_advance_vector"
    if S_B2KN.ndim != 4:
        raise ValueError(f"{op}: S must have shape (B, 2, K, N), got {tuple(S_B2KN.shape)}")
    (B, _, K, N), T = S_B2KN.shape, len(J_TB22N)
    check(op, "S", S_B2KN, (B, 2, K, N), S_B2KN)
    check(op, "J", J_TB22N, (T, B, 2, 2, N), S_B2KN)
    check(op, "l", l_TB2KN, (T, B, 2, K, N), S_B2KN)
    _VECTOR.module(backend, S_B2KN).advance_vector(S_B2KN, J_TB22N, l_TB2KN)
    return S_B2KN


@torch.no_grad()
def rtrl_block_boundary(
    S_B2GND: torch.Tensor, boundary_B2N: torch.Tensor, index: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """grad_GND, grad[g,n,d] = sum over i and both parts of boundary[i,:,n] S[index[i],:,g,n,d], reading S once.

    index: int64 copies the rows of `boundary` belong to (values in [0, B), repeats allowed), all of them by default.
    """
    op = "rtrl_block_boundary"
    if S_B2GND.ndim != 5:
        raise ValueError(f"{op}: S must have shape (B, 2, G, N, D), got {tuple(S_B2GND.shape)}")
    check_carry(op, S_B2GND, (len(S_B2GND), 2, *S_B2GND.shape[2:]), boundary_B2N)
    rows = len(S_B2GND) if index is None else len(index)
    check(op, "boundary", boundary_B2N, (rows, 2, S_B2GND.shape[3]), boundary_B2N)
    if index is not None:
        if index.dtype != torch.int64 or index.device != S_B2GND.device:
            raise ValueError(f"{op}: index must be int64 on {S_B2GND.device}, got {index.dtype} on {index.device}")
        if rows and not index.is_cuda and not 0 <= int(index.min()) <= int(index.max()) < len(S_B2GND):
            raise ValueError(f"{op}: index must lie in [0, {len(S_B2GND)})")
    return _BOUNDARY.module(backend, boundary_B2N).boundary(S_B2GND, boundary_B2N, index)
