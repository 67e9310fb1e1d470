"""The eLSTM core: an LSTM with element-wise recurrence, whose state Jacobian is diagonal.

Source: Irie, Gopalakrishnan, Schmidhuber, "Exploring the Promise and Limits of Real-Time Recurrent Learning" (ICLR 2024),
equations 5-7; the output gate lies outside the recurrence and is left to the cell. With m_t = 0 where is_init, else 1:

    f_t = sigmoid(u_f + v_f * m c_{t-1})     z_t = tanh(u_z + v_z * m c_{t-1})     c_t = f_t * m c_{t-1} + (1 - f_t) * z_t

u = [u_f, u_z] is the input projection with bias, hoisted over all steps by the caller.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from kernels.dispatch import Op, check, check_mask

_SEQUENCE = Op("elstm_sequence", "kernels.elstm")
_STEP = Op("elstm_step", "kernels.elstm")
_LOCAL = Op("elstm_local", "kernels.elstm")


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: Any, u: torch.Tensor, v: torch.Tensor, c0: torch.Tensor, is_init: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        c = impl.forward(u, v, c0, is_init)
        ctx.impl = impl
        ctx.save_for_backward(u, v, c0, is_init, c)
        ctx.set_materialize_grads(False)
        return c, c[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dc: torch.Tensor | None, dfinal: torch.Tensor | None) -> Any:
        if dc is None and dfinal is None:
            return None, None, None, None, None
        return None, *ctx.impl.backward(*ctx.saved_tensors, dc, dfinal), None


def elstm_sequence(
    u_TB2N: torch.Tensor,
    v_2N: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """T steps of the eLSTM core (module docstring).

    u_TB2N: input drive with bias, forget gate first, candidate second; v_2N: the diagonal recurrent weights in the same
    order; c0_BN: state before the first step; is_init_TB: bool, the state is zeroed before consuming step t.
    Returns (c_TBN, c_BN): the state after every step and the last of them as a tensor of its own. Gradients to u, v and
    c0, from both outputs. Raises ValueError for wrong shapes, dtypes or a backend that cannot run.
    """
    op = "elstm_sequence"
    if u_TB2N.ndim != 3 or u_TB2N.shape[0] == 0 or u_TB2N.shape[2] % 2:
        raise ValueError(f"{op}: u must have shape (T >= 1, B, 2N), got {tuple(u_TB2N.shape)}")
    T, B, N = u_TB2N.shape[0], u_TB2N.shape[1], u_TB2N.shape[2] // 2
    check(op, "v", v_2N, (2 * N,), u_TB2N)
    check(op, "c0", c0_BN, (B, N), u_TB2N)
    check_mask(op, "is_init", is_init_TB, (T, B), u_TB2N)
    impl = _SEQUENCE.module(backend, u_TB2N)
    if hasattr(impl, "sequence"):
        return impl.sequence(u_TB2N, v_2N, c0_BN, is_init_TB)
    if torch.is_grad_enabled() and (u_TB2N.requires_grad or v_2N.requires_grad or c0_BN.requires_grad):
        return _Sequence.apply(impl, u_TB2N, v_2N, c0_BN, is_init_TB)
    c_TBN = impl.forward(u_TB2N.detach(), v_2N.detach(), c0_BN.detach(), is_init_TB)
    return c_TBN, c_TBN[-1].clone()


def elstm_step(
    u_B2N: torch.Tensor, v_2N: torch.Tensor, c_BN: torch.Tensor, is_init_B: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """One step of `elstm_sequence`: u_B2N, v_2N, the state c_BN before it and is_init_B give the state c_BN after it."""
    if torch.is_grad_enabled() and (u_B2N.requires_grad or v_2N.requires_grad or c_BN.requires_grad):
        return elstm_sequence(u_B2N[None], v_2N, c_BN, is_init_B[None], backend=backend)[1]
    op = "elstm_step"
    B, N = c_BN.shape
    check(op, "u", u_B2N, (B, 2 * N), c_BN)
    check(op, "v", v_2N, (2 * N,), c_BN)
    check_mask(op, "is_init", is_init_B, (B,), c_BN)
    return _STEP.module(backend, u_B2N).step(u_B2N, v_2N, c_BN, is_init_B)


@torch.no_grad()
def elstm_local(
    u_TB2N: torch.Tensor,
    v_2N: torch.Tensor,
    c_prev_TBN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """State Jacobian and local derivatives of every step; no gradient flows through them.

    c_prev_TBN: the state before each step, not yet zeroed by is_init_TB. Returns (a_TBN, l_TB2N):
    a_t = dc_t/dc_{t-1} = m (f + v_f fh + v_z zh), a diagonal; l_t = [fh, zh] = dc_t/du_t with
    fh = (m c - z) f (1 - f) and zh = (1 - f)(1 - z^2). The sensitivity of c to a weight with du/dw = x advances by
    S_t = a_t S_{t-1} + l_t x_t (`kernels.rtrl`). The full a_t, not the paper's equation 8, which drops the other gate.
    """
    op = "elstm_local"
    T, B, N = c_prev_TBN.shape
    check(op, "u", u_TB2N, (T, B, 2 * N), c_prev_TBN)
    check(op, "v", v_2N, (2 * N,), c_prev_TBN)
    check_mask(op, "is_init", is_init_TB, (T, B), c_prev_TBN)
    return _LOCAL.module(backend, u_TB2N).local(u_TB2N, v_2N, c_prev_TBN, is_init_TB)
