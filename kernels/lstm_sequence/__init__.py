"""LSTM over a sequence with resets inside, the input projection hoisted by the caller (torch gate order i, f, g, o).

i, f, o = sigmoid(u + W h)   g = tanh(u + W h)   c' = f * c + i * g   h' = o * tanh(c')      h, c zeroed where is_init
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.arguments import zeros
from lifelong.kernels.dense import packing
from lifelong.kernels.dispatch import DENSE_UNITS, Op, check, check_mask
from lifelong.kernels.loop import Call, Calls, Direct, Each

_LSTM = Op("lstm_sequence", "lifelong.kernels.lstm_sequence", triton_units=DENSE_UNITS)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: Any, u: torch.Tensor, weight: torch.Tensor, state: torch.Tensor, is_init: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h, last, saved = impl.forward(u, weight, state, is_init)
        ctx.impl = impl
        ctx.save_for_backward(weight, is_init, *saved)
        ctx.set_materialize_grads(False)
        return h, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: torch.Tensor | None, dstate: torch.Tensor | None) -> Any:
        if dh is None and dstate is None:
            return None, None, None, None, None
        weight, is_init, *saved = ctx.saved_tensors
        return None, *ctx.impl.backward(weight, is_init, tuple(saved), dh, dstate), None


def lstm_sequence(
    u_TB4N: torch.Tensor,
    weight_hh: torch.Tensor,
    state_B2N: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """T steps of an LSTM: u_TB4N input drive with all biases, weight_hh (4N, N), state_B2N = h then c, is_init_TB bool.

    Returns (h_TBN, state_B2N). Gradients to u, weight_hh and state, from both outputs. Raises ValueError for wrong
    shapes, dtypes or a backend that cannot run. Source: torch.nn.LSTM, with resets.
    """
    op = "lstm_sequence"
    if u_TB4N.ndim != 3 or u_TB4N.shape[0] == 0 or u_TB4N.shape[2] % 4:
        raise ValueError(f"{op}: u must have shape (T >= 1, B, 4N), got {tuple(u_TB4N.shape)}")
    T, B, N = u_TB4N.shape[0], u_TB4N.shape[1], u_TB4N.shape[2] // 4
    check(op, "weight_hh", weight_hh, (4 * N, N), u_TB4N)
    check(op, "state", state_B2N, (B, 2 * N), u_TB4N)
    check_mask(op, "is_init", is_init_TB, (T, B), u_TB4N)
    impl = _LSTM.module(backend, u_TB4N, N)
    if hasattr(impl, "sequence"):
        return impl.sequence(u_TB4N, weight_hh, state_B2N, is_init_TB)
    return _Sequence.apply(impl, u_TB4N, weight_hh, state_B2N, is_init_TB)


def compiled(sample: torch.Tensor) -> bool:
    """Whether `lstm_call` can be used for tensors like `sample`."""
    return _LSTM.compiled(sample) and sample.device.type == "cpu"


class Kept(NamedTuple):
    """What the forward pass keeps for the backward pass: the gates i, f, g, o [T, B, 4N], c after every step and before
    it [T, B, N], and the h that every step read, zero where it was reset, with a row more."""

    gates: torch.Tensor
    c: torch.Tensor
    before: torch.Tensor
    read: torch.Tensor


def kept(like: torch.Tensor, steps: int, copies: int, units: int) -> Kept:
    """Room for T steps of B copies."""
    sizes = ((0, 4 * units), (0, units), (0, units), (1, units))
    return Kept(*(like.new_empty(steps + more, copies, n) for more, n in sizes))


def lstm_call(
    u_B4N: torch.Tensor, weight_hh: torch.Tensor, state_TBS: torch.Tensor, is_init_TB: torch.Tensor, rows: Kept
) -> Calls:
    """One step from row t of the state to row t + 1, for `kernels.loop`; u is the same buffer at every step, and row t
    of `rows` is filled. Otherwise as `lstm_sequence`."""
    (B, _), N = u_B4N.shape, weight_hh.shape[1]
    weight, pack = packing(weight_hh, transposed=True)
    h, masked = u_B4N.new_empty(B, N), u_B4N.new_empty(B, N)
    arguments: tuple[torch.Tensor | Each, ...] = (
        *(u_B4N, weight, Each(state_TBS), Each(is_init_TB), zeros(N, u_B4N.dtype), Each(rows.gates), Each(rows.c)),
        *(h, masked, Each(rows.read), Each(rows.before), Each(state_TBS[1:])),
    )
    call = Call(_LSTM.module("cpu", u_B4N).CALL, (B, N, torch.get_num_threads()), arguments)
    return Calls([pack], [call])


def forward_call(
    shape: tuple[int, int, int],
    u_M4N: torch.Tensor,
    packed: torch.Tensor,
    state_BS: Each,
    is_init_TB: Each,
    h_MN: torch.Tensor,
    rows: tuple[Each, Each, Each, Each, Each],
) -> Direct:
    """T steps, for `kernels.loop`, from drives and the weight as `packing` has it transposed; `rows` are gates, c, c
    before the first step, and of what was read that of the first step and of the others."""
    (_, B, N), (gates, c, c0, first, masked) = shape, rows
    last = u_M4N.new_empty(B, 2 * N)
    arguments = (u_M4N, packed, state_BS, is_init_TB, zeros(N, u_M4N.dtype), gates, c, h_MN, masked, first, c0, last)
    entry = _LSTM.module("cpu", u_M4N).FORWARD[u_M4N.dtype]
    return Direct(entry, (*shape, torch.get_num_threads(), *arguments))


def backward_call(
    shape: tuple[int, int, int],
    packed: torch.Tensor,
    is_init_TB: Each,
    rows: tuple[Each, Each, Each, Each, Each],
    dh_MN: torch.Tensor,
    du_M4N: torch.Tensor,
    dh0_BN: torch.Tensor,
    dc0_BN: torch.Tensor,
) -> Direct:
    """The backward pass: the gradients of the drives, and, added to `dh0` and `dc0`, of the first state."""
    gates, c, c0, _, _ = rows
    arguments = (packed, is_init_TB, zeros(shape[2], dh_MN.dtype), gates, c, c0, dh_MN, du_M4N, dh0_BN, dc0_BN)
    entry = _LSTM.module("cpu", dh_MN).BACKWARD[dh_MN.dtype]
    return Direct(entry, (*shape, torch.get_num_threads(), *arguments))
