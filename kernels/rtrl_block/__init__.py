"""The RTRL carry of a cell whose state has P parts a unit, (h, c, ..): its Jacobian is PxP blocks (`rtrl` has 1x1).

With J_t = d(h, c)_t/d(h, c)_{t-1} (zero where the copy was reset), l_t = d(h, c)_t/du_t of each of G gates, P numbers,
and du_t/dW = x_t, all products being those of PxP matrices and vectors, unit by unit,

    S_t = J_t S_{t-1} + l_t (outer) x_t      =>      S_T = A S_0 + sum_t (P_t l_t) (outer) x_t
    P_t = J_T ... J_{t+1},                           A = J_T ... J_1

and the part of the chunk's gradient that reaches back before the chunk sums dL/d(h, c)_0 S_0 over the parts of the
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
    S_BPGND: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPGN: torch.Tensor, x_TBD: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """Advances the carry by T steps in place, reading S once and writing it once; returns S.

    S_BPGND: sensitivities of the parts of the state of unit n to the weight (g, n, d), in the dtype of the other
    inputs or in bf16 beside fp32 (accumulated in fp32, rounded once at the end). J_TBPPN: state Jacobian [of, by];
    l_TBPGN: local derivatives; x_TBD: inputs. Raises ValueError for wrong shapes, dtypes or a backend that cannot run.
    """
    op = "rtrl_block_advance"
    if S_BPGND.ndim != 5:
        raise ValueError(f"{op}: S must have shape (B, P, G, N, D), got {tuple(S_BPGND.shape)}")
    (B, P, G, N, D), T = S_BPGND.shape, len(J_TBPPN)
    check_carry(op, S_BPGND, (B, P, G, N, D), x_TBD)
    check(op, "J", J_TBPPN, (T, B, P, P, N), x_TBD)
    check(op, "l", l_TBPGN, (T, B, P, G, N), x_TBD)
    check(op, "x", x_TBD, (T, B, D), x_TBD)
    _ADVANCE.module(backend, x_TBD).advance(S_BPGND, J_TBPPN, l_TBPGN, x_TBD)
    return S_BPGND


@torch.no_grad()
def rtrl_block_advance_vector(
    S_BPKN: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPKN: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """`rtrl_block_advance` for K parameters a unit (biases, element-wise weights): S_t = J_t S_{t-1} + l_t."""
    op = "rtrl_block_advance_vector"
    if S_BPKN.ndim != 4:
        raise ValueError(f"{op}: S must have shape (B, P, K, N), got {tuple(S_BPKN.shape)}")
    (B, P, K, N), T = S_BPKN.shape, len(J_TBPPN)
    check(op, "S", S_BPKN, (B, P, K, N), S_BPKN)
    check(op, "J", J_TBPPN, (T, B, P, P, N), S_BPKN)
    check(op, "l", l_TBPKN, (T, B, P, K, N), S_BPKN)
    _VECTOR.module(backend, S_BPKN).advance_vector(S_BPKN, J_TBPPN, l_TBPKN)
    return S_BPKN


@torch.no_grad()
def rtrl_block_boundary(
    S_BPGND: torch.Tensor, boundary_BPN: torch.Tensor, index: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """grad_GND, grad[g,n,d] = sum over i and the parts of boundary[i,:,n] S[index[i],:,g,n,d], reading S once.

    index: int64 copies the rows of `boundary` belong to (values in [0, B), repeats allowed), all of them by default.
    """
    op = "rtrl_block_boundary"
    if S_BPGND.ndim != 5:
        raise ValueError(f"{op}: S must have shape (B, P, G, N, D), got {tuple(S_BPGND.shape)}")
    check_carry(op, S_BPGND, tuple(S_BPGND.shape), boundary_BPN)
    rows = len(S_BPGND) if index is None else len(index)
    check(op, "boundary", boundary_BPN, (rows, S_BPGND.shape[1], S_BPGND.shape[3]), boundary_BPN)
    if index is not None:
        if index.dtype != torch.int64 or index.device != S_BPGND.device:
            raise ValueError(f"{op}: index must be int64 on {S_BPGND.device}, got {index.dtype} on {index.device}")
        if rows and not index.is_cuda and not 0 <= int(index.min()) <= int(index.max()) < len(S_BPGND):
            raise ValueError(f"{op}: index must lie in [0, {len(S_BPGND)})")
    return _BOUNDARY.module(backend, boundary_BPN).boundary(S_BPGND, boundary_BPN, index)
