"""LSTM in Triton: a program owns a block of copies and walks all steps in one launch; see kernels.gru_sequence."""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lifelong.kernels.triton_tools import blocks, rows_per_program


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    u_ptr, w_ptr, init_ptr, act_ptr, h_ptr, c_ptr, T, B, N,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h and c are [T + 1, B, N] with the initial state in front, so step t reads row t and writes row t + 1."""
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = b < B
    for t in range(T):
        row = (t * B + b)[:, None]
        keep = (live & (tl.load(init_ptr + t * B + b, live, 1) == 0))[:, None]
        for first in range(0, N, BLOCK_N):
            n = (first + tl.arange(0, BLOCK_N))[None, :]
            i, f = tl.zeros([ROWS, BLOCK_N], tl.float32), tl.zeros([ROWS, BLOCK_N], tl.float32)
            g, o = tl.zeros([ROWS, BLOCK_N], tl.float32), tl.zeros([ROWS, BLOCK_N], tl.float32)
            for start in range(0, N, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                h = tl.load(h_ptr + row * N + k[None, :], keep & (k < N)[None, :], 0.0)
                at, inside = w_ptr + n * N + k[:, None], (n < N) & (k < N)[:, None]
                i = tl.dot(h, tl.load(at, inside, 0.0), i, input_precision="tf32x3")
                f = tl.dot(h, tl.load(at + N * N, inside, 0.0), f, input_precision="tf32x3")
                g = tl.dot(h, tl.load(at + 2 * N * N, inside, 0.0), g, input_precision="tf32x3")
                o = tl.dot(h, tl.load(at + 3 * N * N, inside, 0.0), o, input_precision="tf32x3")
            mask = live[:, None] & (n < N)
            i = tl.sigmoid(i + tl.load(u_ptr + row * 4 * N + n, mask, 0.0))
            f = tl.sigmoid(f + tl.load(u_ptr + row * 4 * N + N + n, mask, 0.0))
            g = _tanh(g + tl.load(u_ptr + row * 4 * N + 2 * N + n, mask, 0.0))
            o = tl.sigmoid(o + tl.load(u_ptr + row * 4 * N + 3 * N + n, mask, 0.0))
            c = f * tl.load(c_ptr + row * N + n, keep & (n < N), 0.0) + i * g
            tl.store(act_ptr + row * 4 * N + n, i, mask)
            tl.store(act_ptr + row * 4 * N + N + n, f, mask)
            tl.store(act_ptr + row * 4 * N + 2 * N + n, g, mask)
            tl.store(act_ptr + row * 4 * N + 3 * N + n, o, mask)
            tl.store(c_ptr + (row + B) * N + n, c, mask)
            tl.store(h_ptr + (row + B) * N + n, o * _tanh(c), mask)
        tl.debug_barrier()


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    w_ptr, init_ptr, act_ptr, c_ptr, dh_ptr, dlast_ptr, du_ptr, dstate_ptr, T, B, N,
    HAS_DH: tl.constexpr, HAS_DLAST: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """du goes from step t + 1 to step t; the second half of dstate [B, 2N] is the running gradient of c."""
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = b < B
    for step in range(T + 1):
        t = T - 1 - step
        row = (t * B + b)[:, None]
        for first in range(0, N, BLOCK_N):
            n = (first + tl.arange(0, BLOCK_N))[None, :]
            mask = live[:, None] & (n < N)
            at_h = b[:, None] * 2 * N + n
            d, e = tl.zeros([ROWS, BLOCK_N], tl.float32), tl.zeros([ROWS, BLOCK_N], tl.float32)
            if step > 0:
                e += tl.load(dstate_ptr + at_h + N, mask, 0.0)
                for start in range(0, 4 * N, BLOCK_K):
                    k = start + tl.arange(0, BLOCK_K)
                    g = tl.load(du_ptr + (row + B) * 4 * N + k[None, :], live[:, None] & (k < 4 * N)[None, :], 0.0)
                    w = tl.load(w_ptr + k[:, None] * N + n, (k < 4 * N)[:, None] & (n < N), 0.0)
                    d = tl.dot(g, w, d, input_precision="tf32x3")
                reset = tl.load(init_ptr + (t + 1) * B + b, live, 1) != 0
                d = tl.where(reset[:, None], 0.0, d)
            elif HAS_DLAST:
                d += tl.load(dlast_ptr + at_h, mask, 0.0)
                e += tl.load(dlast_ptr + at_h + N, mask, 0.0)
            if t >= 0:
                if HAS_DH:
                    d += tl.load(dh_ptr + row * N + n, mask, 0.0)
                keep = (live & (tl.load(init_ptr + t * B + b, live, 1) == 0))[:, None]
                i = tl.load(act_ptr + row * 4 * N + n, mask, 0.0)
                f = tl.load(act_ptr + row * 4 * N + N + n, mask, 0.0)
                g = tl.load(act_ptr + row * 4 * N + 2 * N + n, mask, 0.0)
                o = tl.load(act_ptr + row * 4 * N + 3 * N + n, mask, 0.0)
                squashed = _tanh(tl.load(c_ptr + (row + B) * N + n, mask, 0.0))
                e += d * o * (1.0 - squashed * squashed)
                p = tl.load(c_ptr + row * N + n, keep & (n < N), 0.0)
                tl.store(du_ptr + row * 4 * N + n, e * g * i * (1.0 - i), mask)
                tl.store(du_ptr + row * 4 * N + N + n, e * p * f * (1.0 - f), mask)
                tl.store(du_ptr + row * 4 * N + 2 * N + n, e * i * (1.0 - g * g), mask)
                tl.store(du_ptr + row * 4 * N + 3 * N + n, d * squashed * o * (1.0 - o), mask)
                e = tl.where(keep, e * f, 0.0)
            tl.store(dstate_ptr + at_h, d, mask)
            tl.store(dstate_ptr + at_h + N, e, mask)
        tl.debug_barrier()


def forward(
    u_TB4N: torch.Tensor, weight_hh: torch.Tensor, state_B2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """(h_TBN, state_B2N, what backward needs)."""
    (T, B, _), N = u_TB4N.shape, weight_hh.shape[1]
    u, weight, init = u_TB4N.contiguous(), weight_hh.contiguous(), is_init_TB.contiguous()
    act = torch.empty((T, B, 4 * N), dtype=u.dtype, device=u.device)
    h, c = (torch.empty((T + 1, B, N), dtype=u.dtype, device=u.device) for _ in range(2))
    h[0], c[0] = state_B2N.chunk(2, dim=-1)
    rows = rows_per_program(B)
    _forward[(triton.cdiv(B, rows),)](u, weight, init.view(torch.uint8), act, h, c, T, B, N, ROWS=rows, **blocks(N))
    return h[1:], torch.cat([h[-1], c[-1]], dim=-1), (act, h, c)


def backward(
    weight_hh: torch.Tensor,
    is_init_TB: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    dh_TBN: torch.Tensor | None,
    dstate_B2N: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB4N, dweight_hh, dstate_B2N). The weight gradient is one product over all steps and copies."""
    act, h, c = saved
    (T, B, _), N = act.shape, h.shape[-1]
    weight, init = weight_hh.contiguous(), is_init_TB.contiguous()
    du, dstate = torch.empty_like(act), torch.empty((B, 2 * N), dtype=act.dtype, device=act.device)
    dh, dlast = (act if tensor is None else tensor.contiguous() for tensor in (dh_TBN, dstate_B2N))
    rows = rows_per_program(B)
    _backward[(triton.cdiv(B, rows),)](
        weight, init.view(torch.uint8), act, c, dh, dlast, du, dstate, T, B, N,
        HAS_DH=dh_TBN is not None, HAS_DLAST=dstate_B2N is not None, ROWS=rows, **blocks(N),
    )  # fmt: skip
    masked = h[:-1].masked_fill(init[..., None], 0.0)
    return du, du.flatten(0, 1).t() @ masked.flatten(0, 1), dstate
