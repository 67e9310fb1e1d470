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
    return [(zero if node is None else sample.new_tensor(0.0) + next(found)).expand_as(sample) for node in nodes]


class InTorch:
    """A program, evaluated by torch."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def forward(
        self, u_TBGN: Tensor, v_KN: Tensor, state_BPN: Tensor, is_init_TB: Tensor, *, keep: bool = False
    ) -> tuple[Tensor, None]:
        """(the parts of the state after each step, [P, T, B, N], nothing kept for the backward pass)."""
        parts, after = state_BPN.unbind(1), []
        for u_BGN, is_init_B in zip(u_TBGN, is_init_TB, strict=True):
            p = [part.masked_fill(is_init_B[:, None], 0.0) for part in parts]
            parts = tuple(_values(self.program.after, p[0], u=u_BGN.unbind(1), v=v_KN, p=p))
            after.append(parts)
        return torch.stack([torch.stack(part) for part in zip(*after, strict=True)]), None

    def local(
        self, u_TBGN: Tensor, v_KN: Tensor, state_TBPN: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(J_TBPPN, l_TBPGN, k_TBPKN)."""
        program, reset = self.program, is_init_TB[..., None, None]
        T, B, P, N = state_TBPN.shape
        p, found = state_TBPN.masked_fill(reset, 0.0).unbind(2), []
        for rows, columns in ((program.J, P), (program.l, program.gates), (program.k, program.carried)):
            flat = _values([node for row in rows for node in row], p[0], u=u_TBGN.unbind(2), v=v_KN, p=p)
            every = torch.stack(flat, 2) if flat else state_TBPN.new_empty(T, B, 0, N)
            found.append(every.view(T, B, P, columns, N))
        return found[0].masked_fill(reset[..., None], 0.0), found[1], found[2]

    def backward(
        self,
        u_TBGN: Tensor,
        v_KN: Tensor,
        state_BPN: Tensor,
        is_init_TB: Tensor,
        after_PTBN: Tensor,
        kept: Tensor | None,
        e: Sequence[Tensor | None],
        last_BPN: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(du_TBGN, dv_KN, dstate_BPN), given the gradients `e` of the parts and `last` of the last state."""
        before_TBPN = torch.cat([state_BPN[None], after_PTBN.movedim(0, 2)[:-1]])
        J, l, _ = self.local(u_TBGN, v_KN, before_TBPN, is_init_TB)  # noqa: E741
        d_TBPN = torch.stack([torch.zeros_like(after_PTBN[0]) if each is None else each for each in e], 2)
        if last_BPN is not None:
            d_TBPN[-1] += last_BPN
        for t in range(len(d_TBPN) - 1, 0, -1):
            d_TBPN[t - 1] += (d_TBPN[t, :, :, None] * J[t]).sum(1)
        p = before_TBPN.masked_fill(is_init_TB[..., None, None], 0.0).unbind(2)
        weights = _values(self.program.dv, after_PTBN[0], u=u_TBGN.unbind(2), v=v_KN, p=p, d=d_TBPN.unbind(2))
        dv_KN = torch.stack([each.sum((0, 1)) for each in weights]) if weights else torch.zeros_like(v_KN)
        return (d_TBPN[:, :, :, None] * l).sum(2), dv_KN, (d_TBPN[0, :, :, None] * J[0]).sum(1)


def implementation(recurrence: Recurrence, dtype: torch.dtype) -> InTorch:
    """What computes the recurrence."""
    assert recurrence.program is not None
    return InTorch(recurrence.program)
