"""The RTRL carry of a cell with diagonal state Jacobian, advanced by a whole chunk in one pass.

With a_t = dc_t/dc_{t-1} (zero where the copy was reset), l_t = dc_t/du_t of each of G gates and du_t/dW = x_t,

    S_t = a_t S_{t-1} + l_t (outer) x_t      =>      S_T = A S_0 + sum_t (P_t l_t) (outer) x_t
    P_t = product of a_s for s = t+1..T,             A = product of all a_t

and the part of the chunk's gradient that reaches back before the chunk is sum_b (dL/dc_0)[b,n] S_0[b,g,n,d].
Source: Schmidhuber (1992), Neural Computation 4(2):243-248, the hybrid of RTRL and BPTT, for a diagonal Jacobian.
Nothing here is differentiable.
"""

from __future__ import annotations

import torch

from lifelong.kernels.dispatch import Op, check

_ADVANCE = Op("rtrl_advance", "lifelong.kernels.rtrl")
_VECTOR = Op("rtrl_advance_vector", "lifelong.kernels.rtrl")
_BOUNDARY = Op("rtrl_boundary", "lifelong.kernels.rtrl")


def check_carry(op: str, S: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor) -> None:
    """ValueError unless the carry `S` has this shape, the device of `like` and its dtype, or bf16 beside float32."""
    if S.shape != shape:
        raise ValueError(f"{op}: S must have shape {shape}, got {tuple(S.shape)}")
    if S.dtype != like.dtype and (S.dtype != torch.bfloat16 or like.dtype != torch.float32):
        raise ValueError(f"{op}: S must be {like.dtype} or bfloat16 beside float32, got {S.dtype}")
    if S.device != like.device:
        raise ValueError(f"{op}: S must be on {like.device}, got {S.device}")


@torch.no_grad()
def rtrl_advance(
    S_BGND: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBGN: torch.Tensor,
    x_TBD: torch.Tensor,
    *,
    boundary_BN: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Advances the carry by T steps; S is read once, the boundary gradient taken, and S written once.

    S_BGND: sensitivities of state n to the weight (g, n, d), in the dtype of the other inputs or in bf16 beside fp32
    (accumulated in fp32, rounded once at the end). a_TBN: state Jacobian; l_TBGN (or l_TB(GN), as `elstm_local` gives
    it): local derivatives; x_TBD: inputs. boundary_BN: dL/dc_0 of the chunk. out: where the new carry goes, S by
    default. Returns (out, grad_GND), grad[g,n,d] = sum_b boundary[b,n] S_old[b,g,n,d], or None without a boundary.
    """
    op = "rtrl_advance"
    if S_BGND.ndim != 4 or a_TBN.ndim != 3:
        raise ValueError(f"{op}: S must have shape (B, G, N, D) and a (T, B, N), got {S_BGND.shape} and {a_TBN.shape}")
    (B, G, N, D), T = S_BGND.shape, a_TBN.shape[0]
    check_carry(op, S_BGND, (B, G, N, D), a_TBN)
    check(op, "a", a_TBN, (T, B, N), a_TBN)
    check(op, "x", x_TBD, (T, B, D), a_TBN)
    if l_TBGN.shape != (T, B, G * N):
        check(op, "l", l_TBGN, (T, B, G, N), a_TBN)
    l_TBGN = l_TBGN.reshape(T, B, G, N)
    if boundary_BN is not None:
        check(op, "boundary", boundary_BN, (B, N), a_TBN)
    out = S_BGND if out is None else out
    check(op, "out", out, (B, G, N, D), S_BGND)
    return out, _ADVANCE.module(backend, a_TBN).advance(S_BGND, a_TBN, l_TBGN, x_TBD, boundary_BN, out)


@torch.no_grad()
def rtrl_advance_vector(
    S_BKN: torch.Tensor,
    a_TBN: torch.Tensor,
    l_TBKN: torch.Tensor,
    *,
    boundary_BN: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`rtrl_advance` for K parameters per state unit (biases, diagonal recurrent weights): S_t = a_t S_{t-1} + l_t.

    l_TBKN (or l_TB(KN)): the local derivative of the state to the parameter itself, e.g. [fh, zh] for biases and
    [fh * m c_{t-1}, zh * m c_{t-1}] for the diagonal weights of the eLSTM. Returns (out, grad_KN or None).
    """
    op = "rtrl_advance_vector"
    if S_BKN.ndim != 3 or a_TBN.ndim != 3:
        raise ValueError(f"{op}: S must have shape (B, K, N) and a (T, B, N), got {S_BKN.shape} and {a_TBN.shape}")
    (B, K, N), T = S_BKN.shape, a_TBN.shape[0]
    check(op, "S", S_BKN, (B, K, N), a_TBN)
    check(op, "a", a_TBN, (T, B, N), a_TBN)
    if l_TBKN.shape != (T, B, K * N):
        check(op, "l", l_TBKN, (T, B, K, N), a_TBN)
    l_TBKN = l_TBKN.reshape(T, B, K, N)
    if boundary_BN is not None:
        check(op, "boundary", boundary_BN, (B, N), a_TBN)
    out = S_BKN if out is None else out
    check(op, "out", out, (B, K, N), S_BKN)
    return out, _VECTOR.module(backend, a_TBN).advance_vector(S_BKN, a_TBN, l_TBKN, boundary_BN, out)


@torch.no_grad()
def rtrl_boundary(
    S_BGND: torch.Tensor, boundary_BN: torch.Tensor, index: torch.Tensor | None = None, *, backend: str = "auto"
) -> torch.Tensor:
    """grad_GND, grad[g,n,d] = sum_i boundary[i,n] S[index[i],g,n,d], reading each used copy of S once.

    index: int64 copies the rows of `boundary` belong to (values in [0, B), repeats allowed), all of them by default;
    S[index] is never materialised. Used for minibatches of PPO, where S stays at the chunk's start.
    """
    op = "rtrl_boundary"
    if S_BGND.ndim != 4:
        raise ValueError(f"{op}: S must have shape (B, G, N, D), got {tuple(S_BGND.shape)}")
    check_carry(op, S_BGND, tuple(S_BGND.shape), boundary_BN)
    rows = S_BGND.shape[0] if index is None else index.numel()
    check(op, "boundary", boundary_BN, (rows, S_BGND.shape[2]), boundary_BN)
    if index is not None and (index.ndim != 1 or index.dtype != torch.int64 or index.device != S_BGND.device):
        raise ValueError(f"{op}: index must be one-dimensional int64 on {S_BGND.device}, got {index.dtype}")
    if (
        index is not None
        and rows
        and not index.is_cuda
        and not (0 <= int(index.min()) <= int(index.max()) < len(S_BGND))
    ):
        raise ValueError(f"{op}: index must lie in [0, {len(S_BGND)})")
    return _BOUNDARY.module(backend, boundary_BN).boundary(S_BGND, boundary_BN, index)
