"""Element-wise nonlinear cells with a diagonal state Jacobian, other than the eLSTM: the diagonal GRU.

Source: ParaGRU of "ParaRNN" (Danieli et al., 2025). With h zeroed where is_init, and u the hoisted input projection:

    z = sigmoid(u_z + v_z * h)   r = sigmoid(u_r + v_r * h)   c = tanh(u_c + v_c * (h * r))   h' = (1 - z) * h + z * c
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.dispatch import Op, check, check_mask

_SEQUENCE = Op("diagonal_gru_sequence", "lifelong.kernels.diagonal_sequence")
_LOCAL = Op("diagonal_gru_local", "lifelong.kernels.diagonal_sequence")


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: Any, u: torch.Tensor, v: torch.Tensor, h0: torch.Tensor, is_init: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = impl.forward(u, v, h0, is_init)
        ctx.impl = impl
        ctx.save_for_backward(u, v, h0, is_init, h)
        ctx.set_materialize_grads(False)
        return h, h[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: torch.Tensor | None, dfinal: torch.Tensor | None) -> Any:
        if dh is None and dfinal is None:
            return None, None, None, None, None
        return None, *ctx.impl.backward(*ctx.saved_tensors, dh, dfinal), None


def diagonal_gru_sequence(
    u_TB3N: torch.Tensor,
    v_3N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """T steps of the diagonal GRU (module docstring): u_TB3N drive with bias, v_3N weights, both in the order z, r, c.

    Returns (h_TBN, h_BN). Gradients to u, v and h0, from both outputs. Raises ValueError for wrong shapes, dtypes or a
    backend that cannot run.
    """
    op = "diagonal_gru_sequence"
    if u_TB3N.ndim != 3 or u_TB3N.shape[0] == 0 or u_TB3N.shape[2] % 3:
        raise ValueError(f"{op}: u must have shape (T >= 1, B, 3N), got {tuple(u_TB3N.shape)}")
    T, B, N = u_TB3N.shape[0], u_TB3N.shape[1], u_TB3N.shape[2] // 3
    check(op, "v", v_3N, (3 * N,), u_TB3N)
    check(op, "h0", h0_BN, (B, N), u_TB3N)
    check_mask(op, "is_init", is_init_TB, (T, B), u_TB3N)
    impl = _SEQUENCE.module(backend, u_TB3N)
    if not hasattr(impl, "forward"):
        return impl.sequence(u_TB3N, v_3N, h0_BN, is_init_TB)
    return _Sequence.apply(impl, u_TB3N, v_3N, h0_BN, is_init_TB)


@torch.no_grad()
def diagonal_gru_local(
    u_TB3N: torch.Tensor,
    v_3N: torch.Tensor,
    h_prev_TBN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """State Jacobian a_TBN = dh_t/dh_{t-1} and local derivatives l_TB3N = dh_t/du_t for `kernels.rtrl`; no gradient.

    h_prev_TBN: the state before each step, not yet zeroed. The sensitivities to v have the local derivatives
    l_z * h, l_r * h and l_c * h * r with the zeroed h.
    """
    op = "diagonal_gru_local"
    T, B, N = h_prev_TBN.shape
    check(op, "u", u_TB3N, (T, B, 3 * N), h_prev_TBN)
    check(op, "v", v_3N, (3 * N,), h_prev_TBN)
    check_mask(op, "is_init", is_init_TB, (T, B), h_prev_TBN)
    return _LOCAL.module(backend, u_TB3N).local(u_TB3N, v_3N, h_prev_TBN, is_init_TB)
