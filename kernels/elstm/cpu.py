"""The eLSTM layer, compiled: `cpu.c` through ctypes."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row, zeros
from lifelong.kernels.loop import Call, Each

_FORWARD_NARROW = build.function("lifelong.kernels.elstm", "elstm_forward_narrow", "iiiii" + "p" * 11)
_BACKWARD_NARROW = build.function("lifelong.kernels.elstm", "elstm_backward_narrow", "iiiiii" + "p" * 15)
GATE = build.function("lifelong.kernels.elstm", "elstm_gate", "ii" + "p" * 3)
GATE_BACKWARD = build.function("lifelong.kernels.elstm", "elstm_gate_backward", "ii" + "p" * 6)
_ACT = build.function("lifelong.kernels.elstm", "elstm_act", "iiiii" + "p" * 16)
_ACT_ROWS = 8  # batch rows per block of a step, as in cpu.c
ACT_CALL = build.function("lifelong.kernels.elstm", "elstm_act_call", "pp")
ONE_CALL = build.function("lifelong.kernels.elstm", "elstm_one_call", "pp")
NARROW = 16  # widest input that the fused layer takes, as in cpu.c
_GROUPS, _GROUP = 16, 4  # most groups of copies whose gradients are summed apart, and fewest copies per group


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
    GATE[h_TBN.dtype](h_TBN.numel(), torch.get_num_threads(), c_TBN.data_ptr(), o_TBN.data_ptr(), h_TBN.data_ptr())
    return h_TBN


def gate_backward(
    o_TBN: torch.Tensor, c_TBN: torch.Tensor, dh_TBN: torch.Tensor, dc_TBN: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient before the sigmoid, dc + gradient of c through h)."""
    dh, extra = dh_TBN.contiguous(), None if dc_TBN is None else dc_TBN.contiguous()
    dgate, total = torch.empty_like(c_TBN), torch.empty_like(c_TBN)
    GATE_BACKWARD[dh.dtype](
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
    """`act` from row t to row t, c and is_init with a row more; see `kernels.elstm.ElstmAct.calls`. For one copy the
    weights are not packed."""
    (_, B, D), N, P, dtype = x_TBD.shape, c_TBN.shape[2], read_TBP.shape[2], x_TBD.dtype
    scratch = torch.empty((-(-B // _ACT_ROWS) * _ACT_ROWS, 2 * N), dtype=dtype)
    rows = (Each(c_TBN), Each(is_init_TB), zeros(N, dtype), scratch, Each(read_TBP), Each(c_TBN[1:]), Each(gate_TBN))
    return Call(ACT_CALL if B > 1 else ONE_CALL, (B, D, N, P, torch.get_num_threads()), (Each(x_TBD), *packed, *rows))
