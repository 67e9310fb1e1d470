"""A recurrence, compiled: the C that `source` writes, through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer, zero_row
from lifelong.kernels.recurrence import agreement
from lifelong.kernels.recurrence.program import Program
from lifelong.kernels.recurrence.source import LOOPS, NARROW, ROWS, Layout, source

if TYPE_CHECKING:
    from lifelong.kernels.recurrence import Recurrence

_SIGNATURES = {
    "sequence.c": {
        "forward": "iiiii" + "p" * 8,
        "backward": "iiii" + "p" * 14,
        "local": "iiii" + "p" * 9,
        "prepare": "ipp",
        "act": "ii" + "p" * 7,
    },
    "carry.c": {"trace": "iiii" + "p" * 11, "narrow": "iiiiiii" + "p" * 14},
}
_TILES = 128  # most rows of sensitivities in a tile of the fused advance: 1 MiB in float64
GROUPS, GROUP = 16, 4  # most groups of copies whose gradients are summed apart, and fewest copies per group


class Compiled:
    """The C functions of a program in one dtype."""

    def __init__(
        self, layout: Layout, library: ctypes.CDLL, name: str, dtype: torch.dtype, loops: Sequence[str] = LOOPS
    ) -> None:
        self.program, self.dtype = layout.program, dtype
        # what the fused advance keeps of a tile lies on the stack of a thread
        self.narrow = NARROW if self.program.parts * self.program.gates <= _TILES else 0
        self.hoisted, self.kept = len(layout.hoisted), len(layout.kept)
        self.call: dict[str, Callable[..., Any]] = {
            key: build.entry_point(library, f"{name}_{key}", signature, dtype)
            for file in loops
            for key, signature in _SIGNATURES[file].items()
        }

    def address(self, key: str) -> int:
        """Where the C function `key` of `sequence.c` or `carry.c` lies in this process."""
        return ctypes.cast(self.call[key], ctypes.c_void_p).value or 0  # type: ignore[arg-type]

    def _scratch(self, size: int) -> Tensor | None:
        return torch.empty(size, dtype=self.dtype) if size else None

    def forward(
        self, u_TBM: Tensor, v_KN: Tensor, state_BS: Tensor, is_init_TB: Tensor, *, keep: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(the parts of the state after each step, [P, T, B, N], what `backward` wants kept if it is to follow)."""
        (T, B, _), N = u_TBM.shape, v_KN.shape[1]
        u, v, state, init = u_TBM.contiguous(), v_KN.contiguous(), state_BS.contiguous(), is_init_TB.contiguous()
        after = torch.empty((self.program.parts, T, B, N), dtype=u.dtype)
        kept = self._scratch((T * B if keep else -(-B // ROWS)) * self.kept * N)
        w = self._scratch(self.hoisted * N)
        self.call["forward"](
            T, B, N, torch.get_num_threads(), keep, u.data_ptr(), v.data_ptr(), pointer(w), state.data_ptr(),
            init.data_ptr(), zero_row(N, u.dtype), after.data_ptr(), pointer(kept),
        )  # fmt: skip
        return after, kept

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
        """(du_TBM, dv_KN, dstate_BS), given the gradients `e` of the parts after each step and `last` of the last."""
        (T, B, _), N = u_TBM.shape, v_KN.shape[1]
        u, v, state, init = u_TBM.contiguous(), v_KN.contiguous(), state_BS.contiguous(), is_init_TB.contiguous()
        given = [None if each is None else each.contiguous() for each in e]
        last = None if last_BS is None else last_BS.contiguous()
        du, dv, dstate = torch.empty_like(u), torch.empty_like(v), torch.empty_like(state)
        partial = torch.empty((-(-B // ROWS), *v.shape), dtype=u.dtype)
        w = self._scratch(self.hoisted * N)
        pointers = (ctypes.c_void_p * len(given))(*[pointer(each) for each in given])
        self.call["backward"](
            T, B, N, torch.get_num_threads(), u.data_ptr(), v.data_ptr(), pointer(w), state.data_ptr(),
            init.data_ptr(), zero_row(N, u.dtype), after_PTBN.data_ptr(), pointer(kept), ctypes.addressof(pointers),
            pointer(last), du.data_ptr(), partial.data_ptr(), dv.data_ptr(), dstate.data_ptr(),
        )  # fmt: skip
        return du, dv, dstate

    def local(
        self, u_TBM: Tensor, v_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(J_TBPPN, l_TBPGN, k_TBPKN)."""
        (T, B, _), N, program = u_TBM.shape, v_KN.shape[1], self.program
        P = program.parts
        u, v, state, init = u_TBM.contiguous(), v_KN.contiguous(), state_TBS.contiguous(), is_init_TB.contiguous()
        columns = (P, program.gates, program.carried)
        J, l, k = (torch.empty((T, B, P, each, N), dtype=u.dtype) for each in columns)  # noqa: E741
        w = self._scratch(self.hoisted * N)
        self.call["local"](
            T, B, N, torch.get_num_threads(), u.data_ptr(), v.data_ptr(), pointer(w), state.data_ptr(),
            init.data_ptr(), zero_row(N, u.dtype), J.data_ptr(), l.data_ptr(), k.data_ptr(),
        )  # fmt: skip
        return J, l, k

    def trace(
        self, u_TBM: Tensor, v_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor, s_BPMN: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(J_TBPPN, l_TBPGN, largest entry of |J|), advancing the carry s of biases and weights in the same pass."""
        (T, B, _), N, program, dtype = u_TBM.shape, v_KN.shape[1], self.program, u_TBM.dtype
        P = program.parts
        u, v, state, init = u_TBM.contiguous(), v_KN.contiguous(), state_TBS.contiguous(), is_init_TB.contiguous()
        J, l = (torch.empty((T, B, P, each, N), dtype=dtype) for each in (P, program.gates))  # noqa: E741
        s, blocks = s_BPMN.contiguous(), -(-B // ROWS)
        top = torch.empty((blocks, N), dtype=dtype)
        scratch = torch.empty(blocks * P * program.carried * N, dtype=dtype)
        w = self._scratch(self.hoisted * N)
        self.call["trace"](
            T, B, N, torch.get_num_threads(), u.data_ptr(), v.data_ptr(), pointer(w), state.data_ptr(),
            init.data_ptr(), zero_row(N, dtype), J.data_ptr(), l.data_ptr(), s.data_ptr(), top.data_ptr(),
            scratch.data_ptr(),
        )  # fmt: skip
        if s is not s_BPMN:
            s_BPMN.copy_(s)
        return J, l, top.max()

    def advance_narrow(
        self,
        S_BPGND: Tensor,
        s_BPMN: Tensor,
        x_TBD: Tensor,
        weight: Tensor,
        bias: Tensor,
        v_KN: Tensor,
        state_TBS: Tensor,
        is_init_TB: Tensor,
        boundary_BS: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """`kernels.recurrence.advance` in one pass over the states, for D <= NARROW."""
        (T, B, D), N, dtype, program = x_TBD.shape, v_KN.shape[1], x_TBD.dtype, self.program
        S, s, x, state = S_BPGND.contiguous(), s_BPMN.contiguous(), x_TBD.contiguous(), state_TBS.contiguous()
        weight_DM, bias, v, init = (
            weight.t().contiguous(),
            bias.contiguous(),
            v_KN.contiguous(),
            is_init_TB.contiguous(),
        )
        boundary = None if boundary_BS is None else boundary_BS.contiguous()
        group = max(GROUP, -(-B // GROUPS))
        groups, gates, small = -(-B // group), program.gates, program.gates + program.carried
        top, w = torch.empty(groups, N, dtype=dtype), self._scratch(self.hoisted * N)
        grad = None if boundary is None else torch.empty((groups, gates, D, N), dtype=dtype)
        grad_s = None if boundary is None else torch.empty((groups, small, N), dtype=dtype)
        self.call["narrow"](
            T, B, D, N, torch.get_num_threads(), S.dtype == torch.bfloat16, group,
            S.data_ptr(), s.data_ptr(), x.data_ptr(), weight_DM.data_ptr(), bias.data_ptr(), v.data_ptr(), pointer(w),
            state.data_ptr(), init.data_ptr(), zero_row(N, dtype),
            pointer(boundary), pointer(grad), pointer(grad_s), top.data_ptr(),
        )  # fmt: skip
        for mine, given in ((S, S_BPGND), (s, s_BPMN)):
            if mine is not given:
                given.copy_(mine)
        if grad is None or grad_s is None:
            return None, None, top.max()
        return grad.sum(0).transpose(1, 2).contiguous(), grad_s.sum(0), top.max()


def implementation(recurrence: Recurrence, dtype: torch.dtype) -> Compiled:
    """What computes the recurrence, compiled and checked if need be.

    Raises:
        BuildError, Differs: it cannot be had.
    """
    program = recurrence.program
    assert program is not None
    found = program.built.get(("cpu", dtype))
    if found is None:

        def check(compiled: Compiled) -> None:
            agreement.check(compiled, recurrence.step, recurrence.extra())

        found = program.built["cpu", dtype] = compile_all({"recurrence": program}, dtype, check)["recurrence"]
    assert isinstance(found, Compiled)
    return found


def compile_all(
    programs: dict[str, Program],
    dtype: torch.dtype,
    check: Callable[[Compiled], None] = lambda compiled: None,
    flags: tuple[str, ...] = build.FLAGS,
    loops: Sequence[str] = LOOPS,
) -> dict[str, Compiled]:
    """The `programs` in one shared object, each checked before it is kept; only their `loops`.

    Raises:
        BuildError: they cannot be compiled; or what `check` raises.
    """
    layouts = {name: Layout(program, dtype == torch.float32) for name, program in programs.items()}

    def found(library: ctypes.CDLL) -> dict[str, Compiled]:
        return {name: Compiled(layout, library, name, dtype, loops) for name, layout in layouts.items()}

    def check_all(library: ctypes.CDLL) -> None:
        for compiled in found(library).values():
            check(compiled)

    try:
        text = source(layouts, loops)
        return found(build.generated(next(iter(programs)), text, dtype, check_all, flags))
    except OSError as error:
        raise build.BuildError(f"{type(error).__name__}: {error}") from error
