"""eLSTM, compiled: `cpu.c` through ctypes. Backward recomputes the gates, which costs less than storing them."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row, zeros
from lifelong.kernels.loop import Call, Each

_FORWARD = build.function("lifelong.kernels.elstm", "elstm_forward", "iiii" + "p" * 6)
_BACKWARD = build.function("lifelong.kernels.elstm", "elstm_backward", "iiii" + "p" * 12)
_LOCAL = build.function("lifelong.kernels.elstm", "elstm_local", "iiii" + "p" * 6)
_TRACE = build.function("lifelong.kernels.elstm", "elstm_trace", "iiii" + "p" * 8)
_NARROW = build.function("lifelong.kernels.elstm", "elstm_advance_narrow", "iiiiiii" + "p" * 13)
_FORWARD_NARROW = build.function("lifelong.kernels.elstm", "elstm_forward_narrow", "iiiii" + "p" * 11)
_BACKWARD_NARROW = build.function("lifelong.kernels.elstm", "elstm_backward_narrow", "iiiiii" + "p" * 15)
_GATE = build.function("lifelong.kernels.elstm", "elstm_gate", "ii" + "p" * 3)
_GATE_BACKWARD = build.function("lifelong.kernels.elstm", "elstm_gate_backward", "ii" + "p" * 6)
_ACT = build.function("lifelong.kernels.elstm", "elstm_act", "iiiii" + "p" * 16)
_ROWS = 4  # batch rows per block of the weight gradient, as in cpu.c
_ACT_ROWS = 8  # batch rows per block of a step, as in cpu.c
ACT_CALL = build.function("lifelong.kernels.elstm", "elstm_act_call", "pp")
NARROW = 16  # widest input that `advance_narrow` takes, as in cpu.c
_GROUPS, _GROUP = 16, 4  # most groups of copies whose gradients are summed apart, and fewest copies per group


def forward(u_TB2N: torch.Tensor, v_2N: torch.Tensor, c0_BN: torch.Tensor, is_init_TB: torch.Tensor) -> torch.Tensor:
    """c_TBN."""
    T, B, N = u_TB2N.shape[0], *c0_BN.shape
    u, v, c0, init = u_TB2N.contiguous(), v_2N.contiguous(), c0_BN.contiguous(), is_init_TB.contiguous()
    c_TBN = torch.empty((T, B, N), dtype=u.dtype)
    _FORWARD[u.dtype](
        T, B, N, torch.get_num_threads(),
        u.data_ptr(), v.data_ptr(), c0.data_ptr(), init.data_ptr(), zero_row(N, u.dtype), c_TBN.data_ptr(),
    )  # fmt: skip
    return c_TBN


def step(u_B2N: torch.Tensor, v_2N: torch.Tensor, c_BN: torch.Tensor, is_init_B: torch.Tensor) -> torch.Tensor:
    """c_BN after one step; no gradient. The Python around the call is what costs here, so there is little of it."""
    B, N = c_BN.shape
    u, v, c, init = u_B2N.contiguous(), v_2N.contiguous(), c_BN.contiguous(), is_init_B.contiguous()
    out_BN = torch.empty((B, N), dtype=u.dtype)
    _FORWARD[u.dtype](
        1, B, N, torch.get_num_threads(),
        u.data_ptr(), v.data_ptr(), c.data_ptr(), init.data_ptr(), zero_row(N, u.dtype), out_BN.data_ptr(),
    )  # fmt: skip
    return out_BN


def backward(
    u_TB2N: torch.Tensor,
    v_2N: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    c_TBN: torch.Tensor,
    dc_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB2N, dv_2N, dc0_BN)."""
    T, B, N = c_TBN.shape
    u, v, c0, init = u_TB2N.contiguous(), v_2N.contiguous(), c0_BN.contiguous(), is_init_TB.contiguous()
    dc = None if dc_TBN is None else dc_TBN.contiguous()
    dfinal = None if dfinal_BN is None else dfinal_BN.contiguous()
    du, dv, dc0 = torch.empty_like(u), torch.empty_like(v), torch.empty_like(c0)
    partial = torch.empty((-(-B // _ROWS), 2 * N), dtype=u.dtype)
    _BACKWARD[u.dtype](
        T, B, N, torch.get_num_threads(),
        u.data_ptr(), v.data_ptr(), c0.data_ptr(), init.data_ptr(), zero_row(N, u.dtype), c_TBN.data_ptr(),
        pointer(dc), pointer(dfinal),
        du.data_ptr(), partial.data_ptr(), dv.data_ptr(), dc0.data_ptr(),
    )  # fmt: skip
    return du, dv, dc0


def local(
    u_TB2N: torch.Tensor, v_2N: torch.Tensor, c_prev_TBN: torch.Tensor, is_init_TB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a_TBN, l_TB2N)."""
    T, B, N = c_prev_TBN.shape
    u, v, c, init = u_TB2N.contiguous(), v_2N.contiguous(), c_prev_TBN.contiguous(), is_init_TB.contiguous()
    a, l = torch.empty_like(c), torch.empty_like(u)  # noqa: E741
    _LOCAL[u.dtype](
        T, B, N, torch.get_num_threads(),
        u.data_ptr(), v.data_ptr(), c.data_ptr(), init.data_ptr(), a.data_ptr(), l.data_ptr(),
    )  # fmt: skip
    return a, l


def trace(
    u_TB2N: torch.Tensor, v_2N: torch.Tensor, state_TBN: torch.Tensor, is_init_TB: torch.Tensor, s_B4N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a_TBN, l_TB2N) as `local`, advancing the sensitivities s to biases and diagonal weights in the same pass."""
    T, B, N = state_TBN.shape
    u, v, state, init = u_TB2N.contiguous(), v_2N.contiguous(), state_TBN.contiguous(), is_init_TB.contiguous()
    s = s_B4N.contiguous()
    a, l = torch.empty_like(state), torch.empty_like(u)  # noqa: E741
    _TRACE[u.dtype](
        T, B, N, torch.get_num_threads(), u.data_ptr(), v.data_ptr(), state.data_ptr(), init.data_ptr(),
        zero_row(N, u.dtype), a.data_ptr(), l.data_ptr(), s.data_ptr(),
    )  # fmt: skip
    if s is not s_B4N:
        s_B4N.copy_(s)
    return a, l


def advance_narrow(
    S_B2ND: torch.Tensor,
    s_B4N: torch.Tensor,
    x_TBD: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    v_2N: torch.Tensor,
    state_TBN: torch.Tensor,
    is_init_TB: torch.Tensor,
    boundary_BN: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """`kernels.elstm.elstm_advance` in one pass over the states, for D <= NARROW."""
    (T, B, D), N, dtype = x_TBD.shape, state_TBN.shape[2], x_TBD.dtype
    S, s, x, state = S_B2ND.contiguous(), s_B4N.contiguous(), x_TBD.contiguous(), state_TBN.contiguous()
    weight_D2N, bias, v, init = weight.t().contiguous(), bias.contiguous(), v_2N.contiguous(), is_init_TB.contiguous()
    boundary = None if boundary_BN is None else boundary_BN.contiguous()
    group, groups = _groups(B)
    top = torch.empty(groups, N, dtype=dtype)
    grad = None if boundary is None else torch.empty((groups, 2, D, N), dtype=dtype)
    grad_s = None if boundary is None else torch.empty((groups, 4, N), dtype=dtype)
    _NARROW[dtype](
        T, B, D, N, torch.get_num_threads(), S.dtype == torch.bfloat16, group,
        S.data_ptr(), s.data_ptr(), x.data_ptr(), weight_D2N.data_ptr(), bias.data_ptr(), v.data_ptr(),
        state.data_ptr(), init.data_ptr(), zero_row(N, dtype),
        pointer(boundary), pointer(grad), pointer(grad_s), top.data_ptr(),
    )  # fmt: skip
    for mine, given in ((S, S_B2ND), (s, s_B4N)):
        if mine is not given:
            given.copy_(mine)
    if grad is None or grad_s is None:
        return None, None, top.max()
    return grad.sum(0).transpose(1, 2).contiguous(), grad_s.sum(0), top.max()


def _groups(B: int) -> tuple[int, int]:
    """Copies per group, and the number of groups."""
    group = max(_GROUP, -(-B // _GROUPS))
    return group, -(-B // group)


def forward_narrow(
    x_TBD: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    v_2N: torch.Tensor,
    weight_out: torch.Tensor,
    bias_out: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(c_TBN, W_o x + b_o), for D <= NARROW."""
    (T, B, D), N, dtype = x_TBD.shape, c0_BN.shape[1], x_TBD.dtype
    inputs = (
        x_TBD.contiguous(),
        weight.t().contiguous(),
        bias.contiguous(),
        v_2N.contiguous(),
        weight_out.t().contiguous(),
        bias_out.contiguous(),
        c0_BN.contiguous(),
        is_init_TB.contiguous(),
    )
    c_TBN, o_TBN = torch.empty((T, B, N), dtype=dtype), torch.empty((T, B, N), dtype=dtype)
    _FORWARD_NARROW[dtype](
        T, B, D, N, torch.get_num_threads(), *[tensor.data_ptr() for tensor in inputs], zero_row(N, dtype),
        c_TBN.data_ptr(), o_TBN.data_ptr(),
    )  # fmt: skip
    return c_TBN, o_TBN


def backward_narrow(
    x_TBD: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    v_2N: torch.Tensor,
    weight_out: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    c_TBN: torch.Tensor,
    dc_TBN: torch.Tensor,
    dfinal_BN: torch.Tensor | None,
    dgate_TBN: torch.Tensor,
    needs_dx: bool,
) -> tuple[torch.Tensor | None, ...]:
    """(dx or None, dweight, dbias, dv, dweight_out, dbias_out, dc0), for D <= NARROW; dgate: gradient before the
    output gate's sigmoid."""
    (T, B, D), N, dtype = x_TBD.shape, c0_BN.shape[1], x_TBD.dtype
    inputs = (
        x_TBD.contiguous(),
        weight.t().contiguous(),
        bias.contiguous(),
        v_2N.contiguous(),
        weight_out.t().contiguous(),
        c0_BN.contiguous(),
        is_init_TB.contiguous(),
    )
    dc, dgate = dc_TBN.contiguous(), dgate_TBN.contiguous()
    dfinal = None if dfinal_BN is None else dfinal_BN.contiguous()
    c = c_TBN.contiguous()
    group, groups = _groups(B)
    sums = torch.empty((groups, 3 * D + 5, N), dtype=dtype)
    dc0, dx = torch.empty_like(inputs[5]), torch.empty_like(inputs[0]) if needs_dx else None
    _BACKWARD_NARROW[dtype](
        T, B, D, N, torch.get_num_threads(), group, *[tensor.data_ptr() for tensor in inputs], zero_row(N, dtype),
        c.data_ptr(), dc.data_ptr(), pointer(dfinal), dgate.data_ptr(), sums.data_ptr(), dc0.data_ptr(), pointer(dx),
    )  # fmt: skip
    matrices, vectors = sums.sum(0).split([3 * D, 5])
    forget_DN, candidate_DN, out_DN = matrices.split(D)
    dweight = torch.cat([forget_DN.t(), candidate_DN.t()])
    return dx, dweight, vectors[:2].flatten(), vectors[3:].flatten(), out_DN.t().contiguous(), vectors[2], dc0


def gate(o_TBN: torch.Tensor, c_TBN: torch.Tensor) -> torch.Tensor:
    """h = sigmoid(o) * c; o becomes sigmoid(o) in place."""
    h_TBN = torch.empty_like(c_TBN)
    _GATE[h_TBN.dtype](h_TBN.numel(), torch.get_num_threads(), c_TBN.data_ptr(), o_TBN.data_ptr(), h_TBN.data_ptr())
    return h_TBN


def gate_backward(
    o_TBN: torch.Tensor, c_TBN: torch.Tensor, dh_TBN: torch.Tensor, dc_TBN: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient before the sigmoid, dc + gradient of c through h)."""
    dh, extra = dh_TBN.contiguous(), None if dc_TBN is None else dc_TBN.contiguous()
    dgate, total = torch.empty_like(c_TBN), torch.empty_like(c_TBN)
    _GATE_BACKWARD[dh.dtype](
        dh.numel(), torch.get_num_threads(), c_TBN.data_ptr(), o_TBN.data_ptr(), dh.data_ptr(),
        pointer(extra), dgate.data_ptr(), total.data_ptr(),
    )  # fmt: skip
    return dgate, total


def act(
    x_BD: torch.Tensor, packed: tuple[torch.Tensor, ...], c_BN: torch.Tensor, is_init_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(read_BP, c_BN, gate_BN) after one step of the whole layer; no gradient. See `kernels.elstm.ElstmAct`."""
    x, c, init = x_BD.contiguous(), c_BN.contiguous(), is_init_B.contiguous()
    (B, D), N, dtype, P = x.shape, c.shape[1], x.dtype, packed[-1].shape[0]
    read_BP, next_BN, gate_BN = torch.empty(B, P, dtype=dtype), torch.empty_like(c), torch.empty_like(c)
    scratch = torch.empty((-(-B // _ACT_ROWS) * _ACT_ROWS, 2 * N), dtype=dtype)
    _ACT[dtype](
        B, D, N, P, torch.get_num_threads(), x.data_ptr(), *[w.data_ptr() for w in packed],
        c.data_ptr(), init.data_ptr(), zero_row(N, dtype), scratch.data_ptr(),
        read_BP.data_ptr(), next_BN.data_ptr(), gate_BN.data_ptr(),
    )  # fmt: skip
    return read_BP, next_BN, gate_BN


def act_call(
    x_TBD: torch.Tensor,
    packed: tuple[torch.Tensor, ...],
    c_TBN: torch.Tensor,
    is_init_TB: torch.Tensor,
    read_TBP: torch.Tensor,
    gate_TBN: torch.Tensor,
) -> Call:
    """`act` from row t to row t, c and is_init with a row more; see `kernels.elstm.ElstmAct.call`."""
    (_, B, D), N, P, dtype = x_TBD.shape, c_TBN.shape[2], read_TBP.shape[2], x_TBD.dtype
    scratch = torch.empty((-(-B // _ACT_ROWS) * _ACT_ROWS, 2 * N), dtype=dtype)
    rows = (Each(c_TBN), Each(is_init_TB), zeros(N, dtype), scratch, Each(read_TBP), Each(c_TBN[1:]), Each(gate_TBN))
    return Call(ACT_CALL, (B, D, N, P, torch.get_num_threads()), (Each(x_TBD), *packed, *rows))
