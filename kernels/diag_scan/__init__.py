"""The diagonal linear recurrence h_t = a_t * (m_t h_{t-1}) + b_t, to which every linear element-wise cell reduces.

The reverse scan of it is the backward pass of every cell with a diagonal Jacobian, and of diagonal feedback (DSF).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.dispatch import Op, check, check_mask

_SCAN = Op(
    "diag_scan",
    "lifelong.kernels.diag_scan",
    cpu_dtypes=(torch.float32, torch.float64, torch.complex64, torch.complex128),
)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        impl: Any,
        a: torch.Tensor,
        b: torch.Tensor,
        h0: torch.Tensor | None,
        is_init: torch.Tensor | None,
        reverse: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = impl.forward(a, b, h0, is_init, reverse)
        ctx.impl, ctx.reverse = impl, reverse
        ctx.save_for_backward(a, h0, is_init, h)
        ctx.set_materialize_grads(False)
        return h, h[0 if reverse else -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: torch.Tensor | None, dfinal: torch.Tensor | None) -> Any:
        if dh is None and dfinal is None:
            return None, None, None, None, None, None
        a, h0, is_init, h = ctx.saved_tensors
        da, db, dh0 = ctx.impl.backward(a, h0, is_init, ctx.reverse, h, dh, dfinal)
        return None, da, db, None if h0 is None else dh0, None, None


def diag_scan(
    a_TBN: torch.Tensor,
    b_TBN: torch.Tensor,
    h0_BN: torch.Tensor | None = None,
    is_init_TB: torch.Tensor | None = None,
    reverse: bool = False,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = a_t * (m_t h_{t-1}) + b_t with m_t = 0 where is_init, else 1; real or complex.

    h0_BN: state before the first step, zeros by default; is_init_TB: bool, the state is zeroed before step t is taken.
    reverse: steps are taken from the last to the first, h_t = a_t * (m_t h_{t+1}) + b_t, and h0 comes before the last.
    Returns (h_TBN, h_BN): the state after every step and after the last step taken. Gradients to a, b and h0, from
    both.
    """
    op = "diag_scan"
    if a_TBN.ndim != 3 or a_TBN.shape[0] == 0:
        raise ValueError(f"{op}: a must have shape (T >= 1, B, N), got {tuple(a_TBN.shape)}")
    check(op, "b", b_TBN, a_TBN.shape, a_TBN)
    if h0_BN is not None:
        check(op, "h0", h0_BN, a_TBN.shape[1:], a_TBN)
    if is_init_TB is not None:
        check_mask(op, "is_init", is_init_TB, a_TBN.shape[:2], a_TBN)
    impl = _SCAN.module(backend, a_TBN)
    if hasattr(impl, "sequence"):
        return impl.sequence(a_TBN, b_TBN, h0_BN, is_init_TB, reverse)
    wanted = a_TBN.requires_grad or b_TBN.requires_grad or (h0_BN is not None and h0_BN.requires_grad)
    if torch.is_grad_enabled() and wanted:
        return _Scan.apply(impl, a_TBN, b_TBN, h0_BN, is_init_TB, reverse)
    a_TBN, b_TBN, h0_BN = a_TBN.detach(), b_TBN.detach(), None if h0_BN is None else h0_BN.detach()
    h_TBN = impl.forward(a_TBN, b_TBN, h0_BN, is_init_TB, reverse)
    return h_TBN, h_TBN[0 if reverse else -1].clone()
