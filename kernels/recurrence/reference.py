"""A recurrence step by step, by autograd: the traced function itself, the oracle of the other backends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: (drives, weights, parts of the state before) -> parts of the state after
Step = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]


def sequence(
    step: Step, u_TBM: Tensor, v_KN: Tensor, state_BS: Tensor, is_init_TB: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """(the parts of the state after each step, [T, B, N] each, the last state [B, S]), differentiable."""
    N = v_KN.shape[1]
    parts, weights = state_BS.split(N, -1), v_KN.unbind(0)
    after: list[tuple[Tensor, ...]] = []
    for u_BM, is_init_B in zip(u_TBM, is_init_TB, strict=True):
        masked = tuple(part.masked_fill(is_init_B[:, None], 0.0) for part in parts)
        parts = tuple(torch.broadcast_to(part, masked[0].shape) for part in step(u_BM.split(N, -1), weights, masked))
        after.append(parts)
    return tuple(torch.stack(part) for part in zip(*after, strict=True)), torch.cat(parts, -1)


@torch.no_grad()
def local(
    step: Step, u_TBM: Tensor, v_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(J_TBPPN, l_TBPGN, k_TBPKN): derivatives of every part after a step, the third axis, all steps at once."""
    (T, B, _), N, reset = state_TBS.shape, v_KN.shape[1], is_init_TB[..., None]
    with torch.enable_grad():
        parts = tuple(part.detach().requires_grad_() for part in state_TBS.masked_fill(reset, 0.0).split(N, -1))
        drives = tuple(u.detach().requires_grad_() for u in u_TBM.split(N, -1))
        weights = tuple(v.detach().expand(T, B, N).requires_grad_() for v in v_KN.unbind(0))
        inputs = (*parts, *drives, *weights)
        after = (part + 0.0 * parts[0].detach() for part in step(drives, weights, parts))
        rows = [
            torch.autograd.grad(part.sum(), inputs, retain_graph=True, materialize_grads=True)
            if part.requires_grad
            else tuple(map(torch.zeros_like, inputs))
            for part in after
        ]
    every = torch.stack([torch.stack(row, dim=2) for row in rows], dim=2)
    J, l, k = every.split((len(parts), len(drives), len(weights)), 3)  # noqa: E741
    return J.masked_fill(reset[..., None, None], 0.0), l, k
