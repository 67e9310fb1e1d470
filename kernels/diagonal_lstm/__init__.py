"""The diagonal LSTM: element-wise recurrence on the pair (h, c) of each unit, so the state Jacobian is 2x2 blocks.

Source: ParaLSTM of "ParaRNN" (Danieli et al., 2025), an LSTM with coupled input and forget gates and peepholes. With h
and c zeroed where is_init, and u = [u_f, u_g, u_o] the hoisted input projection:

    f = sigmoid(u_f + a_f * h + p_f * c)   g = tanh(u_g + a_g * h)   c' = f * c + (1 - f) * g
    o = sigmoid(u_o + a_o * h + p_o * c')  h' = o * tanh(c')

The weights come as one vector v = [a_f, a_g, a_o, p_f, p_o], the state as [h, c].
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.dispatch import Op, check, check_mask

_SEQUENCE = Op("diagonal_lstm_sequence", "lifelong.kernels.diagonal_lstm")
_LOCAL = Op("diagonal_lstm_local", "lifelong.kernels.diagonal_lstm")


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: Any, u: torch.Tensor, v: torch.Tensor, state: torch.Tensor, is_init: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h, c = impl.forward(u, v, state, is_init)
        ctx.impl = impl
        ctx.save_for_backward(u, v, state, is_init, h, c)
        ctx.set_materialize_grads(False)
        return h, torch.cat([h[-1], c[-1]], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: torch.Tensor | None, dlast: torch.Tensor | None) -> Any:
        if dh is None and dlast is None:
            return None, None, None, None, None
        return None, *ctx.impl.backward(*ctx.saved_tensors, dh, dlast), None


def diagonal_lstm_sequence(
    u_TB3N: torch.Tensor,
    v_5N: torch.Tensor,
    state_B2N: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """T steps of the diagonal LSTM (module docstring): u_TB3N drive with bias, v_5N weights, state_B2N = h then c.

    Returns (h_TBN, state_B2N). Gradients to u, v and state, from both outputs. Raises ValueError for wrong shapes,
    dtypes or a backend that cannot run.
    """
    op = "diagonal_lstm_sequence"
    if u_TB3N.ndim != 3 or u_TB3N.shape[0] == 0 or u_TB3N.shape[2] % 3:
        raise ValueError(f"{op}: u must have shape (T >= 1, B, 3N), got {tuple(u_TB3N.shape)}")
    T, B, N = u_TB3N.shape[0], u_TB3N.shape[1], u_TB3N.shape[2] // 3
    check(op, "v", v_5N, (5 * N,), u_TB3N)
    check(op, "state", state_B2N, (B, 2 * N), u_TB3N)
    check_mask(op, "is_init", is_init_TB, (T, B), u_TB3N)
    impl = _SEQUENCE.module(backend, u_TB3N)
    if not hasattr(impl, "forward"):
        return impl.sequence(u_TB3N, v_5N, state_B2N, is_init_TB)
    return _Sequence.apply(impl, u_TB3N, v_5N, state_B2N, is_init_TB)


@torch.no_grad()
def diagonal_lstm_local(
    u_TB3N: torch.Tensor,
    v_5N: torch.Tensor,
    state_TB2N: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Derivatives of every step at a fixed state before it, for `kernels.rtrl_block`; no gradient flows through them.

    state_TB2N: the state [h, c] before each step, not yet zeroed. Returns (J_TB22N, l_TB23N, k_TB25N), whose third axis
    is the part of the state that is differentiated (h, c): J = d(h, c)_t/d(h, c)_{t-1}, zero where is_init;
    l = d(h, c)_t/du_t; k = d(h, c)_t/dv.
    """
    op = "diagonal_lstm_local"
    T, B, N = state_TB2N.shape[0], state_TB2N.shape[1], state_TB2N.shape[2] // 2
    check(op, "state", state_TB2N, (T, B, 2 * N), state_TB2N)
    check(op, "u", u_TB3N, (T, B, 3 * N), state_TB2N)
    check(op, "v", v_5N, (5 * N,), state_TB2N)
    check_mask(op, "is_init", is_init_TB, (T, B), state_TB2N)
    return _LOCAL.module(backend, u_TB3N).local(u_TB3N, v_5N, state_TB2N, is_init_TB)
