"""GRU over a sequence with resets inside, the input projection hoisted by the caller (torch gate order r, z, n).

r, z = sigmoid(u + W h)   n = tanh(u_n + r * (W_n h + b_n))   h' = (1 - z) * n + z * h          h zeroed where is_init
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.arguments import zeros
from lifelong.kernels.dense import packing
from lifelong.kernels.dispatch import DENSE_UNITS, Op, check, check_mask
from lifelong.kernels.loop import Call, Calls, Direct, Each

_GRU = Op("gru_sequence", "lifelong.kernels.gru_sequence", triton_units=DENSE_UNITS)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        impl: Any,
        u: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        h0: torch.Tensor,
        is_init: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h, saved = impl.forward(u, weight, bias, h0, is_init)
        ctx.impl = impl
        ctx.save_for_backward(weight, is_init, *saved)
        ctx.set_materialize_grads(False)
        return h, h[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: torch.Tensor | None, dfinal: torch.Tensor | None) -> Any:
        if dh is None and dfinal is None:
            return None, None, None, None, None, None
        weight, is_init, *saved = ctx.saved_tensors
        return None, *ctx.impl.backward(weight, is_init, tuple(saved), dh, dfinal), None


def gru_sequence(
    u_TB3N: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_hn_N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """T steps of a GRU: u_TB3N input drive (with every bias but bias_hn_N), weight_hh (3N, N), h0_BN, is_init_TB bool.

    Returns (h_TBN, h_BN). Gradients to u, weight_hh, bias_hn and h0, from both outputs. Raises ValueError for wrong
    shapes, dtypes or a backend that cannot run. Source: torch.nn.GRU, with resets.
    """
    op = "gru_sequence"
    if u_TB3N.ndim != 3 or u_TB3N.shape[0] == 0 or u_TB3N.shape[2] % 3:
        raise ValueError(f"{op}: u must have shape (T >= 1, B, 3N), got {tuple(u_TB3N.shape)}")
    T, B, N = u_TB3N.shape[0], u_TB3N.shape[1], u_TB3N.shape[2] // 3
    check(op, "weight_hh", weight_hh, (3 * N, N), u_TB3N)
    check(op, "bias_hn", bias_hn_N, (N,), u_TB3N)
    check(op, "h0", h0_BN, (B, N), u_TB3N)
    check_mask(op, "is_init", is_init_TB, (T, B), u_TB3N)
    impl = _GRU.module(backend, u_TB3N, N)
    if hasattr(impl, "sequence"):
        return impl.sequence(u_TB3N, weight_hh, bias_hn_N, h0_BN, is_init_TB)
    return _Sequence.apply(impl, u_TB3N, weight_hh, bias_hn_N, h0_BN, is_init_TB)


def compiled(sample: torch.Tensor) -> bool:
    """Whether `gru_call` can be used for tensors like `sample`."""
    return _GRU.compiled(sample) and sample.device.type == "cpu"


class Kept(NamedTuple):
    """What the forward pass keeps for the backward pass: the gates r, z, n [T, B, 3N], W_n h + b_n [T, B, N], and what
    every step read of the state, zero where it was reset, with a row more."""

    gates: torch.Tensor
    inside: torch.Tensor
    read: torch.Tensor


def kept(like: torch.Tensor, steps: int, copies: int, units: int) -> Kept:
    """Room for T steps of B copies."""
    rows = (like.new_empty(steps + more, copies, n) for more, n in ((0, 3 * units), (0, units), (1, units)))
    return Kept(*rows)


def gru_call(
    u_B3N: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_hn_N: torch.Tensor,
    h_TBN: torch.Tensor,
    is_init_TB: torch.Tensor,
    rows: Kept,
) -> Calls:
    """One step from row t of h to row t + 1, for `kernels.loop`; u is the same buffer at every step, and row t of
    `rows` is filled. Otherwise as `gru_sequence`."""
    (B, _), N = u_B3N.shape, weight_hh.shape[1]
    weight, pack = packing(weight_hh, transposed=True)
    arguments: tuple[torch.Tensor | Each, ...] = (
        *(u_B3N, weight, bias_hn_N.detach(), Each(h_TBN), Each(is_init_TB), Each(rows.gates), Each(rows.inside)),
        *(Each(h_TBN[1:]), u_B3N.new_empty(B, N), Each(rows.read)),
    )
    call = Call(_GRU.module("cpu", u_B3N).CALL, (B, N, torch.get_num_threads()), arguments)
    return Calls([pack], [call])


def forward_call(
    shape: tuple[int, int, int],
    u_M3N: torch.Tensor,
    packed: torch.Tensor,
    bias_hn_N: torch.Tensor,
    h0_BN: Each,
    is_init_TB: Each,
    h_TBN: Each,
    rows: tuple[Each, Each, Each, Each],
) -> Direct:
    """T steps, for `kernels.loop`, from drives and the weight as `packing` has it transposed; `rows` are gates, inside,
    and of what was read that of the first step and of the others."""
    gates, inside, first, masked = rows
    arguments = (u_M3N, packed, bias_hn_N.detach(), h0_BN, is_init_TB, gates, inside, h_TBN, masked, first)
    entry = _GRU.module("cpu", u_M3N).FORWARD[u_M3N.dtype]
    return Direct(entry, (*shape, torch.get_num_threads(), *arguments))


def backward_call(
    shape: tuple[int, int, int],
    packed: torch.Tensor,
    is_init_TB: Each,
    rows: tuple[Each, Each, Each, Each],
    dh_MN: torch.Tensor,
    du_M3N: torch.Tensor,
    dhh_M3N: torch.Tensor,
    dh0_BN: torch.Tensor,
) -> Direct:
    """The backward pass: the gradients of the drives, of W h + b, and, added to `dh0`, of the first state."""
    (_, _, N), (gates, inside, first, masked) = shape, rows
    scratch = torch.empty_like(dh0_BN)
    arguments = (packed, is_init_TB, zeros(N, dh_MN.dtype), gates, inside, first, masked)
    entry = _GRU.module("cpu", dh_MN).BACKWARD[dh_MN.dtype]
    return Direct(entry, (*shape, torch.get_num_threads(), *arguments, dh_MN, du_M3N, dhh_M3N, dh0_BN, scratch))
