"""Diagonal LSTM in Triton: a program owns one copy and a block of units and walks the steps, (h, c) in registers."""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _weights(v_ptr, n, N, mask):  # type: ignore[no-untyped-def]
    a_f, a_g = tl.load(v_ptr + n, mask, 0.0), tl.load(v_ptr + N + n, mask, 0.0)
    a_o, p_f = tl.load(v_ptr + 2 * N + n, mask, 0.0), tl.load(v_ptr + 3 * N + n, mask, 0.0)
    return a_f, a_g, a_o, p_f, tl.load(v_ptr + 4 * N + n, mask, 0.0)


@triton.jit
def _step(u_ptr, row, n, N, mask, a_f, a_g, a_o, p_f, p_o, h, c):  # type: ignore[no-untyped-def]
    """(f, g, o, c') of one copy and step; row is t * B + b."""
    f = tl.sigmoid(tl.load(u_ptr + row * 3 * N + n, mask, 0.0) + a_f * h + p_f * c)
    g = _tanh(tl.load(u_ptr + row * 3 * N + N + n, mask, 0.0) + a_g * h)
    after = g + f * (c - g)
    o = tl.sigmoid(tl.load(u_ptr + row * 3 * N + 2 * N + n, mask, 0.0) + a_o * h + p_o * after)
    return f, g, o, after


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    u_ptr, v_ptr, state_ptr, init_ptr, h_ptr, c_ptr, T, B, N, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    a_f, a_g, a_o, p_f, p_o = _weights(v_ptr, n, N, mask)
    h, c = tl.load(state_ptr + b * 2 * N + n, mask, 0.0), tl.load(state_ptr + b * 2 * N + N + n, mask, 0.0)
    for t in range(T):
        row = t * B + b
        reset = tl.load(init_ptr + row) != 0
        h, c = tl.where(reset, 0.0, h), tl.where(reset, 0.0, c)
        _, _, o, c = _step(u_ptr, row, n, N, mask, a_f, a_g, a_o, p_f, p_o, h, c)
        h = o * _tanh(c)
        tl.store(h_ptr + row * N + n, h, mask)
        tl.store(c_ptr + row * N + n, c, mask)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    u_ptr, v_ptr, state_ptr, init_ptr, h_ptr, c_ptr, dh_ptr, dlast_ptr, du_ptr, dv_ptr, dstate_ptr,
    T, B, N, HAS_DH: tl.constexpr, HAS_DLAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    a_f, a_g, a_o, p_f, p_o = _weights(v_ptr, n, N, mask)
    d, e = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)  # running gradients of h and of c
    if HAS_DLAST:
        d += tl.load(dlast_ptr + b * 2 * N + n, mask, 0.0)
        e += tl.load(dlast_ptr + b * 2 * N + N + n, mask, 0.0)
    da_f, da_g, da_o = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    dp_f, dp_o = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i in range(T):
        t = T - 1 - i
        row = t * B + b
        if t == 0:
            h, c = tl.load(state_ptr + b * 2 * N + n, mask, 0.0), tl.load(state_ptr + b * 2 * N + N + n, mask, 0.0)
        else:
            h, c = tl.load(h_ptr + (row - B) * N + n, mask, 0.0), tl.load(c_ptr + (row - B) * N + n, mask, 0.0)
        reset = tl.load(init_ptr + row) != 0
        h, c = tl.where(reset, 0.0, h), tl.where(reset, 0.0, c)
        f, g, o, after = _step(u_ptr, row, n, N, mask, a_f, a_g, a_o, p_f, p_o, h, c)
        squashed = _tanh(after)
        if HAS_DH:
            d += tl.load(dh_ptr + row * N + n, mask, 0.0)
        d_o = d * squashed * o * (1.0 - o)
        e += d * o * (1.0 - squashed * squashed) + d_o * p_o
        df = e * (c - g) * f * (1.0 - f)
        dg = e * (1.0 - f) * (1.0 - g * g)
        tl.store(du_ptr + row * 3 * N + n, df, mask)
        tl.store(du_ptr + row * 3 * N + N + n, dg, mask)
        tl.store(du_ptr + row * 3 * N + 2 * N + n, d_o, mask)
        da_f += df * h
        da_g += dg * h
        da_o += d_o * h
        dp_f += df * c
        dp_o += d_o * after
        d = tl.where(reset, 0.0, df * a_f + dg * a_g + d_o * a_o)
        e = tl.where(reset, 0.0, e * f + df * p_f)
    tl.store(dv_ptr + b * 5 * N + n, da_f, mask)
    tl.store(dv_ptr + b * 5 * N + N + n, da_g, mask)
    tl.store(dv_ptr + b * 5 * N + 2 * N + n, da_o, mask)
    tl.store(dv_ptr + b * 5 * N + 3 * N + n, dp_f, mask)
    tl.store(dv_ptr + b * 5 * N + 4 * N + n, dp_o, mask)
    tl.store(dstate_ptr + b * 2 * N + n, d, mask)
    tl.store(dstate_ptr + b * 2 * N + N + n, e, mask)


@triton.jit
def _local(  # type: ignore[no-untyped-def]
    u_ptr, v_ptr, state_ptr, init_ptr, J_ptr, l_ptr, k_ptr, N, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    a_f, a_g, a_o, p_f, p_o = _weights(v_ptr, n, N, mask)
    reset = tl.load(init_ptr + row) != 0
    h = tl.where(reset, 0.0, tl.load(state_ptr + row * 2 * N + n, mask, 0.0))
    c = tl.where(reset, 0.0, tl.load(state_ptr + row * 2 * N + N + n, mask, 0.0))
    f, g, o, after = _step(u_ptr, row, n, N, mask, a_f, a_g, a_o, p_f, p_o, h, c)
    squashed = _tanh(after)
    l_f, l_g, l_o = (c - g) * f * (1.0 - f), (1.0 - f) * (1.0 - g * g), squashed * o * (1.0 - o)
    through = o * (1.0 - squashed * squashed) + l_o * p_o
    c_h, c_c = l_f * a_f + l_g * a_g, f + l_f * p_f
    J, l, k = J_ptr + row * 4 * N + n, l_ptr + row * 6 * N + n, k_ptr + row * 10 * N + n  # noqa: E741
    tl.store(J, tl.where(reset, 0.0, through * c_h + l_o * a_o), mask)
    tl.store(J + N, tl.where(reset, 0.0, through * c_c), mask)
    tl.store(J + 2 * N, tl.where(reset, 0.0, c_h), mask)
    tl.store(J + 3 * N, tl.where(reset, 0.0, c_c), mask)
    zero = tl.zeros([BLOCK], tl.float32)
    tl.store(l, through * l_f, mask)
    tl.store(l + N, through * l_g, mask)
    tl.store(l + 2 * N, l_o, mask)
    tl.store(l + 3 * N, l_f, mask)
    tl.store(l + 4 * N, l_g, mask)
    tl.store(l + 5 * N, zero, mask)
    tl.store(k, through * l_f * h, mask)
    tl.store(k + N, through * l_g * h, mask)
    tl.store(k + 2 * N, l_o * h, mask)
    tl.store(k + 3 * N, through * l_f * c, mask)
    tl.store(k + 4 * N, l_o * after, mask)
    tl.store(k + 5 * N, l_f * h, mask)
    tl.store(k + 6 * N, l_g * h, mask)
    tl.store(k + 7 * N, zero, mask)
    tl.store(k + 8 * N, l_f * c, mask)
    tl.store(k + 9 * N, zero, mask)


def _block(N: int) -> int:
    return min(triton.next_power_of_2(N), 128)


def forward(
    u_TB3N: torch.Tensor, v_5N: torch.Tensor, state_B2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(h_TBN, c_TBN)."""
    T, B, N = u_TB3N.shape[0], u_TB3N.shape[1], state_B2N.shape[1] // 2
    u, v, state, init = u_TB3N.contiguous(), v_5N.contiguous(), state_B2N.contiguous(), is_init_TB.contiguous()
    h, c = (
        torch.empty((T, B, N), dtype=u.dtype, device=u.device),
        torch.empty((T, B, N), dtype=u.dtype, device=u.device),
    )
    block = _block(N)
    grid = (B, triton.cdiv(N, block))
    _forward[grid](u, v, state, init.view(torch.uint8), h, c, T, B, N, BLOCK=block, num_warps=max(1, block // 64))
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
    """(du_TB3N, dv_5N, dstate_B2N). dv is summed over copies in a fixed order, without atomics."""
    T, B, N = h_TBN.shape
    u, v, state, init = u_TB3N.contiguous(), v_5N.contiguous(), state_B2N.contiguous(), is_init_TB.contiguous()
    dh, dlast = (h_TBN if tensor is None else tensor.contiguous() for tensor in (dh_TBN, dlast_B2N))
    du, dstate = torch.empty_like(u), torch.empty_like(state)
    dv = torch.empty((B, 5 * N), dtype=u.dtype, device=u.device)
    block = _block(N)
    _backward[(B, triton.cdiv(N, block))](
        u, v, state, init.view(torch.uint8), h_TBN, c_TBN, dh, dlast, du, dv, dstate, T, B, N,
        HAS_DH=dh_TBN is not None, HAS_DLAST=dlast_B2N is not None, BLOCK=block, num_warps=max(1, block // 64),
    )  # fmt: skip
    return du, dv.sum(0), dstate


def local(
    u_TB3N: torch.Tensor, v_5N: torch.Tensor, state_TB2N: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(J_TB22N, l_TB23N, k_TB25N)."""
    T, B, N = state_TB2N.shape[0], state_TB2N.shape[1], state_TB2N.shape[2] // 2
    u, v, state, init = u_TB3N.contiguous(), v_5N.contiguous(), state_TB2N.contiguous(), is_init_TB.contiguous()
    J, l, k = (torch.empty((T, B, 2, parts, N), dtype=u.dtype, device=u.device) for parts in (2, 3, 5))  # noqa: E741
    block = _block(N)
    _local[(T * B, triton.cdiv(N, block))](
        u, v, state, init.view(torch.uint8), J, l, k, N, BLOCK=block, num_warps=max(1, block // 64)
    )
    return J, l, k
