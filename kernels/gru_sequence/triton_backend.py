"""GRU in Triton: a program owns a block of copies and walks all steps in one launch.

A step needs all of h for the product with W, and a Triton program cannot cut a register tensor along the units it sums
over. So h goes from step to step through the output buffer, which is written anyway and whose last rows are still in
the cache; a barrier separates the steps. No copy needs another program, so nothing synchronises the grid. Every program
reads all of W (12 N^2 bytes, from the L2 cache) at every step, ROWS/2 operations a byte. Above 256 units
(`kernels.dispatch.DENSE_UNITS`) one product per step over all copies, spread over the whole device, is the better plan:
that is the torch backend.
"""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lifelong.kernels.triton_tools import blocks, rows_per_program


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    u_ptr, w_ptr, bias_ptr, init_ptr, act_ptr, q_ptr, h_ptr, T, B, N,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h is [T + 1, B, N] with the initial state in front, so step t reads row t and writes row t + 1."""
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = b < B
    for t in range(T):
        row = (t * B + b)[:, None]
        keep = (live & (tl.load(init_ptr + t * B + b, live, 1) == 0))[:, None]
        for first in range(0, N, BLOCK_N):
            n = (first + tl.arange(0, BLOCK_N))[None, :]
            r, z = tl.zeros([ROWS, BLOCK_N], tl.float32), tl.zeros([ROWS, BLOCK_N], tl.float32)
            s = tl.zeros([ROWS, BLOCK_N], tl.float32)
            for start in range(0, N, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                h = tl.load(h_ptr + row * N + k[None, :], keep & (k < N)[None, :], 0.0)
                at, inside = w_ptr + n * N + k[:, None], (n < N) & (k < N)[:, None]
                r = tl.dot(h, tl.load(at, inside, 0.0), r, input_precision="tf32x3")
                z = tl.dot(h, tl.load(at + N * N, inside, 0.0), z, input_precision="tf32x3")
                s = tl.dot(h, tl.load(at + 2 * N * N, inside, 0.0), s, input_precision="tf32x3")
            mask = live[:, None] & (n < N)
            p = tl.load(h_ptr + row * N + n, keep & (n < N), 0.0)
            r = tl.sigmoid(r + tl.load(u_ptr + row * 3 * N + n, mask, 0.0))
            z = tl.sigmoid(z + tl.load(u_ptr + row * 3 * N + N + n, mask, 0.0))
            s += tl.load(bias_ptr + n, n < N, 0.0)
            c = 2.0 * tl.sigmoid(2.0 * (tl.load(u_ptr + row * 3 * N + 2 * N + n, mask, 0.0) + r * s)) - 1.0
            tl.store(act_ptr + row * 3 * N + n, r, mask)
            tl.store(act_ptr + row * 3 * N + N + n, z, mask)
            tl.store(act_ptr + row * 3 * N + 2 * N + n, c, mask)
            tl.store(q_ptr + row * N + n, s, mask)
            tl.store(h_ptr + (row + B) * N + n, c + z * (p - c), mask)
        tl.debug_barrier()


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    w_ptr, init_ptr, act_ptr, q_ptr, h_ptr, dh_ptr, dfinal_ptr, du_ptr, dhh_ptr, dh0_ptr, T, B, N,
    HAS_DH: tl.constexpr, HAS_DFINAL: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dhh, the gradient of W h + b, goes from step t + 1 to step t; dh0 holds the part of dh that does not pass W."""
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = b < B
    for i in range(T + 1):
        t = T - 1 - i
        row = (t * B + b)[:, None]
        for first in range(0, N, BLOCK_N):
            n = (first + tl.arange(0, BLOCK_N))[None, :]
            mask = live[:, None] & (n < N)
            d = tl.zeros([ROWS, BLOCK_N], tl.float32)
            if i > 0:
                d += tl.load(dh0_ptr + b[:, None] * N + n, mask, 0.0)
                for start in range(0, 3 * N, BLOCK_K):
                    k = start + tl.arange(0, BLOCK_K)
                    g = tl.load(dhh_ptr + (row + B) * 3 * N + k[None, :], live[:, None] & (k < 3 * N)[None, :], 0.0)
                    w = tl.load(w_ptr + k[:, None] * N + n, (k < 3 * N)[:, None] & (n < N), 0.0)
                    d = tl.dot(g, w, d, input_precision="tf32x3")
                reset = tl.load(init_ptr + (t + 1) * B + b, live, 1) != 0
                d = tl.where(reset[:, None], 0.0, d)
            elif HAS_DFINAL:
                d += tl.load(dfinal_ptr + b[:, None] * N + n, mask, 0.0)
            if t >= 0:
                if HAS_DH:
                    d += tl.load(dh_ptr + row * N + n, mask, 0.0)
                keep = (live & (tl.load(init_ptr + t * B + b, live, 1) == 0))[:, None]
                p = tl.load(h_ptr + row * N + n, keep & (n < N), 0.0)
                r = tl.load(act_ptr + row * 3 * N + n, mask, 0.0)
                z = tl.load(act_ptr + row * 3 * N + N + n, mask, 0.0)
                c = tl.load(act_ptr + row * 3 * N + 2 * N + n, mask, 0.0)
                dn = d * (1.0 - z) * (1.0 - c * c)
                dz = d * (p - c) * z * (1.0 - z)
                dr = dn * tl.load(q_ptr + row * N + n, mask, 0.0) * r * (1.0 - r)
                tl.store(du_ptr + row * 3 * N + n, dr, mask)
                tl.store(du_ptr + row * 3 * N + N + n, dz, mask)
                tl.store(du_ptr + row * 3 * N + 2 * N + n, dn, mask)
                tl.store(dhh_ptr + row * 3 * N + n, dr, mask)
                tl.store(dhh_ptr + row * 3 * N + N + n, dz, mask)
                tl.store(dhh_ptr + row * 3 * N + 2 * N + n, dn * r, mask)
                d *= z
            tl.store(dh0_ptr + b[:, None] * N + n, d, mask)
        tl.debug_barrier()


def forward(
    u_TB3N: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_hn_N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(h_TBN, what backward needs)."""
    T, B, N = u_TB3N.shape[0], *h0_BN.shape
    u, weight, bias, init = u_TB3N.contiguous(), weight_hh.contiguous(), bias_hn_N.contiguous(), is_init_TB.contiguous()
    act = torch.empty((T, B, 3 * N), dtype=u.dtype, device=u.device)
    q = torch.empty((T, B, N), dtype=u.dtype, device=u.device)
    states = torch.empty((T + 1, B, N), dtype=u.dtype, device=u.device)
    states[0] = h0_BN
    rows = rows_per_program(B)
    _forward[(triton.cdiv(B, rows),)](
        u, weight, bias, init.view(torch.uint8), act, q, states, T, B, N, ROWS=rows, **blocks(N)
    )
    return states[1:], (act, q, states)


def backward(
    weight_hh: torch.Tensor,
    is_init_TB: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dweight_hh, dbias_hn_N, dh0_BN). The weight gradient is one product over all steps and copies."""
    act, q, states = saved
    T, B, N = q.shape
    weight, init = weight_hh.contiguous(), is_init_TB.contiguous()
    du, dhh, dh0 = torch.empty_like(act), torch.empty_like(act), torch.empty_like(states[0])
    dh, dfinal = (q if tensor is None else tensor.contiguous() for tensor in (dh_TBN, dfinal_BN))
    rows = rows_per_program(B)
    _backward[(triton.cdiv(B, rows),)](
        weight, init.view(torch.uint8), act, q, states, dh, dfinal, du, dhh, dh0, T, B, N,
        HAS_DH=dh_TBN is not None, HAS_DFINAL=dfinal_BN is not None, ROWS=rows, **blocks(N),
    )  # fmt: skip
    masked = states[:-1].masked_fill(init[..., None], 0.0)
    return du, dhh.flatten(0, 1).t() @ masked.flatten(0, 1), dhh[..., 2 * N :].sum(dim=(0, 1)), dh0
