"""LSTM over a sequence with resets inside, the input projection hoisted by the caller (torch gate order i, f, g, o).

i, f, o = sigmoid(u + W h)   g = tanh(u + W h)   c' = f * c + i * g   h' = o * tanh(c')      h, c zeroed where is_init
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.arguments import zeros
from lifelong.kernels.dense import packing
from lifelong.kernels.dispatch import DENSE_UNITS, Op, check, check_mask
from lifelong.kernels.loop import Call, Calls, Each

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


def lstm_call(u_B4N: torch.Tensor, weight_hh: torch.Tensor, state_TBS: torch.Tensor, is_init_TB: torch.Tensor) -> Calls:
    """One step from row t of the state to row t + 1, for `kernels.loop`; u is the same buffer at every step. Otherwise
    as `lstm_sequence`."""
    (B, _), N = u_B4N.shape, weight_hh.shape[1]
    weight, pack = packing(weight_hh, transposed=True)
    act, rows = torch.empty_like(u_B4N), [u_B4N.new_empty(B, N) for _ in range(5)]
    before: tuple[torch.Tensor | Each, ...] = u_B4N, weight, Each(state_TBS), Each(is_init_TB), zeros(N, u_B4N.dtype)
    call = Call(
        _LSTM.module("cpu", u_B4N).CALL, (B, N, torch.get_num_threads()), (*before, act, *rows, Each(state_TBS[1:]))
    )
    return Calls([pack], [call])
