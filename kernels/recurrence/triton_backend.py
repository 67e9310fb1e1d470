"""A recurrence in Triton: the kernels that `triton_source` writes, compiled from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from lifelong.kernels.compiler import triton_functions
from lifelong.kernels.recurrence.program import Program
from lifelong.kernels.recurrence.source import Layout
from lifelong.kernels.recurrence.triton_source import source
from lifelong.kernels.triton_tools import from_source

if TYPE_CHECKING:
    from lifelong.kernels.recurrence import Recurrence


class OnDevice:
    """The Triton kernels of a program."""

    kept = 0

    def __init__(self, program: Program) -> None:
        self.program = program
        text = source(Layout(program, single=True, keep=False))
        name = f"recurrence_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        functions = {key: value for key, value in vars(triton_functions).items() if key.startswith("_")}
        self.kernels = from_source(name, text, functions)

    def forward(
        self, u_TBM: Tensor, v_KN: Tensor, state_BS: Tensor, is_init_TB: Tensor, *, keep: bool = False
    ) -> tuple[Tensor, None]:
        """(the parts of the state after each step, [P, T, B, N], nothing kept for the backward pass)."""
        (T, B, _), N = u_TBM.shape, v_KN.shape[1]
        u, v, state, init = u_TBM.contiguous(), v_KN.contiguous(), state_BS.contiguous(), is_init_TB.contiguous()
        after = torch.empty((self.program.parts, T, B, N), dtype=u.dtype, device=u.device)
        grid, options = _launch(B, N)
        self.kernels["forward"][grid](u, v, state, init.view(torch.uint8), after, T, B, N, **options)
        return after, None

    def backward(
        self,
        u_TBM: Tensor,
        v_KN: Tensor,
        state_BS: Tensor,
        is_init_TB: Tensor,
        after_PTBN: Tensor,
        kept: None,
        e: Sequence[Tensor | None],
        last_BS: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(du_TBM, dv_KN, dstate_BS). dv is summed over copies in a fixed order, without atomics."""
        (T, B, _), (K, N) = u_TBM.shape, v_KN.shape
        u, v, state, init = u_TBM.contiguous(), v_KN.contiguous(), state_BS.contiguous(), is_init_TB.contiguous()
        given = [after_PTBN if each is None else each.contiguous() for each in e]
        last = after_PTBN if last_BS is None else last_BS.contiguous()
        du, dstate = torch.empty_like(u), torch.empty_like(state)
        dv = torch.empty((B, K, N), dtype=u.dtype, device=u.device)
        grid, options = _launch(B, N)
        flags = {f"HAS_E{i}": each is not None for i, each in enumerate(e)}
        self.kernels["backward"][grid](
            u, v, state, init.view(torch.uint8), after_PTBN, *given, last, du, dv, dstate, T, B, N,
            **flags, HAS_LAST=last_BS is not None, **options,
        )  # fmt: skip
        return du, dv.sum(0), dstate

    def local(
        self, u_TBM: Tensor, v_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(J_TBPPN, l_TBPGN, k_TBPKN)."""
        (T, B, _), N, program = u_TBM.shape, v_KN.shape[1], self.program
        u, v, state, init = u_TBM.contiguous(), v_KN.contiguous(), state_TBS.contiguous(), is_init_TB.contiguous()
        J, l, k = (  # noqa: E741
            torch.empty((T, B, program.parts, columns, N), dtype=u.dtype, device=u.device)
            for columns in (program.parts, program.gates, program.carried)
        )
        grid, options = _launch(T * B, N)
        self.kernels["local"][grid](u, v, state, init.view(torch.uint8), J, l, k, N, **options)
        return J, l, k


def _launch(rows: int, N: int) -> tuple[tuple[int, int], dict[str, int]]:
    block = min(triton.next_power_of_2(N), 128)
    return (rows, triton.cdiv(N, block)), {"BLOCK": block, "num_warps": max(1, block // 64)}


def implementation(recurrence: Recurrence, dtype: torch.dtype) -> OnDevice:
    """What computes the recurrence."""
    program = recurrence.program
    assert program is not None
    found = program.built.setdefault(("triton", dtype), None) or OnDevice(program)
    program.built["triton", dtype] = found
    assert isinstance(found, OnDevice)
    return found
