"""A recurrence in torch operations: its derivatives are those of the graph, all steps at once, so that only a reverse
scan over the blocks of the Jacobian is left in the loop of the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifelong.kernels.compiler.graph import Node, evaluate
from lifelong.kernels.compiler.operations import IN_TORCH
from lifelong.kernels.recurrence.program import Program

if TYPE_CHECKING:
    from lifelong.kernels.recurrence import Recurrence


def _values(nodes: Sequence[Node | None], sample: Tensor, **inputs: Iterable[Tensor]) -> list[Tensor]:
    """The nodes, each like `sample`, where the inputs u0, u1 ... are those of `u`, and so on."""
    values: dict[str, object] = {f"{name}{i}": each for name, many in inputs.items() for i, each in enumerate(many)}
    found: Iterator[Any] = iter(evaluate([node for node in nodes if node is not None], values, IN_TORCH))
    zero = sample.new_zeros(())
    return [(zero if node is None else zero + next(found)).expand_as(sample) for node in nodes]


class InTorch:
    """A program, evaluated by torch."""

    kept = 0

    def __init__(self, program: Program) -> None:
        self.program = program

    def forward(
        self, u_TBM: Tensor, v_KN: Tensor, state_BS: Tensor, is_init_TB: Tensor, *, keep: bool = False
    ) -> tuple[Tensor, None]:
        """(the parts of the state after each step, [P, T, B, N], nothing kept for the backward pass)."""
        N = v_KN.shape[1]
        parts, after = state_BS.split(N, -1), []
        for u_BM, is_init_B in zip(u_TBM, is_init_TB, strict=True):
            p = [part.masked_fill(is_init_B[:, None], 0.0) for part in parts]
            parts = tuple(_values(self.program.after, p[0], u=u_BM.split(N, -1), v=v_KN, p=p))
            after.append(parts)
        return torch.stack([torch.stack(part) for part in zip(*after, strict=True)]), None

    def local(
        self, u_TBM: Tensor, v_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(J_TBPPN, l_TBPGN, k_TBPKN)."""
        program, reset = self.program, is_init_TB[..., None]
        (T, B, _), P, N = state_TBS.shape, program.parts, v_KN.shape[1]
        p, found = state_TBS.masked_fill(reset, 0.0).split(N, -1), []
        for rows, columns in ((program.J, P), (program.l, program.gates), (program.k, program.carried)):
            flat = _values([node for row in rows for node in row], p[0], u=u_TBM.split(N, -1), v=v_KN, p=p)
            every = torch.stack(flat, 2) if flat else state_TBS.new_empty(T, B, 0, N)
            found.append(every.view(T, B, P, columns, N))
        return found[0].masked_fill(reset[..., None, None], 0.0), found[1], found[2]

    def backward(
        self,
        u_TBM: Tensor,
        v_KN: Tensor,
        state_BS: Tensor,
        is_init_TB: Tensor,
        after_PTBN: Tensor,
        kept: Tensor | None,
        e: Sequence[Tensor | None],
        last_BS: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(du_TBM, dv_KN, dstate_BS), given the gradients `e` of the parts and `last` of the last state."""
        N = v_KN.shape[1]
        before_TBS = torch.cat([state_BS[None], torch.cat(after_PTBN.unbind(0), -1)[:-1]])
        J, l, _ = self.local(u_TBM, v_KN, before_TBS, is_init_TB)  # noqa: E741
        d_TBPN = torch.stack([torch.zeros_like(after_PTBN[0]) if each is None else each for each in e], 2)
        if last_BS is not None:
            d_TBPN[-1] += last_BS.view(d_TBPN[-1].shape)
        for t in range(len(d_TBPN) - 1, 0, -1):
            d_TBPN[t - 1] += (d_TBPN[t, :, :, None] * J[t]).sum(1)
        p = before_TBS.masked_fill(is_init_TB[..., None], 0.0).split(N, -1)
        weights = _values(self.program.dv, after_PTBN[0], u=u_TBM.split(N, -1), v=v_KN, p=p, d=d_TBPN.unbind(2))
        dv_KN = torch.stack([each.sum((0, 1)) for each in weights]) if weights else torch.zeros_like(v_KN)
        du_TBGN, dstate_BPN = (d_TBPN[:, :, :, None] * l).sum(2), (d_TBPN[0, :, :, None] * J[0]).sum(1)
        return du_TBGN.flatten(2), dv_KN, dstate_BPN.flatten(1)


def implementation(recurrence: Recurrence, dtype: torch.dtype) -> InTorch:
    """What computes the recurrence."""
    assert recurrence.program is not None
    return InTorch(recurrence.program)
