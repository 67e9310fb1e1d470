"""Recurrent cells whose units do not see each other, from their recurrence alone.

A recurrence is a function of one step, element by element: the parts of the state after it (one to eight tensors) from
the drives u = W x + b (one a gate), weights (one number a unit) and the parts before it. `program` traces it with
`kernels.compiler`; what is done with the program is here:

    sequence   T steps with resets, with gradients: the backward pass computes the gates again from the states, unless
               one costs more than storing it
    local      the derivatives of every step at a fixed state before it, from which RTRL's carry moves
    advance    the whole carry moved over a chunk, fused with the drives where the input is narrow
    acting     one step as a C function, for code that is compiled itself

Backends: `reference` is the function itself and autograd; `torch` evaluates the program; `cpu` and `triton` are what
the compiler writes. The C of a program is checked against the function when it is compiled, before it is kept. One that
differs is not used, and neither is a function that cannot be traced: one line says why, and `reference` runs.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lifelong.kernels import build
from lifelong.kernels.compiler.trace import Branching, Untraceable
from lifelong.kernels.dispatch import Op, check, check_mask
from lifelong.kernels.recurrence import reference
from lifelong.kernels.recurrence.agreement import Differs
from lifelong.kernels.recurrence.carry import boundary, move, move_small
from lifelong.kernels.recurrence.program import Program, traced
from lifelong.kernels.recurrence.reference import Step
from lifelong.kernels.recurrence.solve import Solved, Solver
from lifelong.kernels.rtrl import check_carry

__all__ = ["Acting", "Recurrence", "Solver", "Step", "boundary"]

_OP = Op("recurrence", "lifelong.kernels.recurrence", generated=True)
_log = logging.getLogger("lifelong.kernels")
_said: set[str] = set()


class Acting(NamedTuple):
    """One step of a recurrence for other compiled code, by address; `real` is float or double, `i64` int64_t:

        void prepare(i64 N, const real *v, real *w)
        void act(i64 B, i64 N, const real *u, const real *v, const real *w, const real *state, const uint8_t *init,
                 const real *zeros, real *next)

    v [K, N] is `Recurrence.weights`; `prepare` computes from it what depends on weights alone, w [hoisted, N], and has
    to be called again when v has changed. `act` steps B copies in the calling thread: from their drives u [B, G*N],
    with bias, and the state [B, P*N] before the step, taken as zeros where init [B] is not 0, to the state `next`,
    which does not overlap it. zeros [N] is zero. Copies are independent, so rows may be given to several threads. All
    arrays are contiguous. The object stays loaded as long as the process lives.
    """

    prepare: int
    act: int
    hoisted: int


class Recurrence:
    """A recurrence, and what is computed with it.

    Args:
        function: `function(drives, vectors, *parts)` gives the parts of the state after a step.
        gates, vectors, parts: how many of each it takes.
        module: whose method it is, if it is one, and then its first argument. Parameters and buffers of it that the
            function reads have one number, or one a unit.
        units: N, where there is a module.

    Raises:
        ValueError: its Python control flow depends on the data.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        gates: int,
        vectors: int,
        parts: int,
        module: nn.Module | None = None,
        units: int = 1,
    ) -> None:
        self.name = getattr(function, "__name__", "a function") if module is None else type(module).__name__
        self._module = None if module is None else weakref.ref(module)
        self._function, self.parts = function, parts
        self.gates, self.vectors = gates, vectors
        self.program: Program | None = None
        try:
            program = traced(function, module, gates, vectors, parts)
            for name in program.extra:
                if (shape := tuple(getattr(module, name).shape)) not in ((), (1,), (units,)):
                    raise Untraceable(f"reads {name} of shape {shape}, which is not one number or one a unit")
            self.program = program
        except Branching as error:
            raise ValueError(f"the recurrence of {self.name} cannot be one of a cell: {error}") from error
        except Untraceable as error:
            self._give_up(f"it {error}")

    def step(
        self, drives: tuple[Tensor, ...], weights: tuple[Tensor, ...], parts: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """One step of the function itself."""
        module = () if self._module is None else (self._module(),)
        after = self._function(*module, drives, weights[: self.vectors], *parts)
        return after if isinstance(after, tuple) else (after,)

    def sequence(
        self,
        u_TBM: Tensor,
        v_KN: Tensor,
        state_BS: Tensor,
        is_init_TB: Tensor,
        *,
        solver: Solver | None = None,
        backend: str = "auto",
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """T steps; the state is zeroed before step t where is_init.

        Args:
            u_TBM: the drives, with bias, M = G*N.
            v_KN: the weights.
            state_BS: the state before the first step, S = P*N, one part after the other.
            is_init_TB: bool.
            solver: takes all steps at once in place of the loop; the function itself (`reference`) has none.
            backend: see `kernels.dispatch`.

        Returns:
            `(parts, state_BS)`: the parts of the state after each step, [T, B, N] each, and the last state. Gradients
            to u, v and state from all of them.

        Raises:
            ValueError: a wrong shape or dtype, or a backend that cannot run.
        """
        self._check(u_TBM, v_KN, is_init_TB)
        check("recurrence", "state", state_BS, (u_TBM.shape[1], self.parts * v_KN.shape[1]), u_TBM)
        impl = self.implementation(backend, u_TBM)
        if impl is None:
            return reference.sequence(self.step, u_TBM, v_KN, state_BS, is_init_TB)
        v_KN = self.weights(v_KN)
        if solver is not None and len(u_TBM) > 1:
            impl = Solved(impl, solver)
        if torch.is_grad_enabled() and (u_TBM.requires_grad or v_KN.requires_grad or state_BS.requires_grad):
            *parts, last = _Sequence.apply(impl, u_TBM, v_KN, state_BS, is_init_TB)
            return tuple(parts), last
        after, _ = impl.forward(u_TBM.detach(), v_KN.detach(), state_BS.detach(), is_init_TB)
        return after.unbind(0), _last(after)

    @torch.no_grad()
    def local(
        self, u_TBM: Tensor, v_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor, *, backend: str = "auto"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of every step, state_TBS being the state before each step and before any reset.

        Returns:
            `(J_TBPPN, l_TBPGN, k_TBPKN)`, the third axis being the part that is differentiated: by the parts before the
            step (zero where they were reset), by the drives, by the weights.
        """
        self._check(u_TBM, v_KN, is_init_TB)
        check("recurrence", "state", state_TBS, (*u_TBM.shape[:2], self.parts * v_KN.shape[1]), u_TBM)
        impl = self.implementation(backend, u_TBM)
        if impl is None:
            return reference.local(self.step, u_TBM, v_KN, state_TBS, is_init_TB)
        result: tuple[Tensor, Tensor, Tensor] = impl.local(u_TBM, self.weights(v_KN), state_TBS, is_init_TB)
        return result

    @torch.no_grad()
    def advance(
        self,
        S_BPGND: Tensor,
        s_BPMN: Tensor,
        x_TBD: Tensor,
        weight: Tensor,
        bias: Tensor,
        v_KN: Tensor,
        state_TBS: Tensor,
        is_init_TB: Tensor,
        *,
        boundary_BS: Tensor | None = None,
        backend: str = "auto",
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Moves the whole RTRL carry over a chunk, in place.

        Args:
            S_BPGND: sensitivities of the parts of the state to the input weights, fp32/fp64 or bf16 beside fp32.
            s_BPMN: those to the biases, then to the weights, M = G + K.
            x_TBD: inputs.
            weight, bias: [G*N, D] and [G*N], which make the drives.
            v_KN: the weights.
            state_TBS: the state before each step and before any reset.
            is_init_TB: bool.
            boundary_BS: dL/dstate_0.
            backend: see `kernels.dispatch`.

        Returns:
            `(grad_GND, grad_MN, largest entry of |J|)`: what the old carry adds to the chunk's gradient, both None
            without a boundary.
        """
        op, (T, B, D), (P, G, N) = "recurrence", x_TBD.shape, (self.parts, self.gates, v_KN.shape[1])
        check_carry(op, S_BPGND, (B, P, G, N, D), x_TBD)
        check(op, "s", s_BPMN, (B, P, G + self.vectors, N), x_TBD)
        check(op, "weight", weight, (G * N, D), x_TBD)
        check(op, "bias", bias, (G * N,), x_TBD)
        check(op, "v", v_KN, (self.vectors, N), x_TBD)
        check(op, "state", state_TBS, (T, B, P * N), x_TBD)
        check_mask(op, "is_init", is_init_TB, (T, B), x_TBD)
        if boundary_BS is not None:
            check(op, "boundary", boundary_BS, (B, P * N), x_TBD)
        impl = self.implementation(backend, x_TBD)
        v_all = v_KN if impl is None else self.weights(v_KN)
        if impl is not None and hasattr(impl, "advance_narrow") and impl.narrow >= D:
            carry = (S_BPGND, s_BPMN)
            result: tuple[Tensor | None, Tensor | None, Tensor] = impl.advance_narrow(
                *carry, x_TBD, weight, bias, v_all, state_TBS, is_init_TB, boundary_BS
            )
            return result
        u_TBM = nn.functional.linear(x_TBD, weight, bias)
        edge_BPN = None if boundary_BS is None else boundary_BS.unflatten(-1, (P, N))
        grad_MN = None if edge_BPN is None else torch.einsum("bpn,bpmn->mn", edge_BPN, s_BPMN)
        if impl is not None and hasattr(impl, "trace"):
            J, l, largest = impl.trace(u_TBM, v_all, state_TBS, is_init_TB, s_BPMN)  # noqa: E741
        else:
            J, l, k = self.local(u_TBM, v_KN, state_TBS, is_init_TB, backend=backend)  # noqa: E741
            move_small(s_BPMN, J, torch.cat([l, k], 3), backend)
            largest = J.abs().max()
        return move(S_BPGND, J, l, x_TBD, edge_BPN, backend), grad_MN, largest

    def _check(self, u_TBM: Tensor, v_KN: Tensor, is_init_TB: Tensor) -> None:
        op, (T, B, M), N = "recurrence", u_TBM.shape, v_KN.shape[1]
        check(op, "v", v_KN, (self.vectors, N), u_TBM)
        if T == 0 or self.gates * N != M:
            raise ValueError(f"{op}: u must have shape (T >= 1, B, {self.gates} * {N}), got {tuple(u_TBM.shape)}")
        check_mask(op, "is_init", is_init_TB, (T, B), u_TBM)

    def acting(self, sample: Tensor) -> Acting | None:
        """One step by address, for tensors like `sample`; None where it is not compiled to C."""
        impl = self.implementation("auto", sample)
        if impl is None or not hasattr(impl, "address"):
            return None
        return Acting(impl.address("prepare"), impl.address("act"), impl.hoisted)

    def weights(self, v_KN: Tensor) -> Tensor:
        """The weights [K, N], then what the function reads besides its arguments, a row each."""
        assert self.program is not None
        if not self.program.extra:
            return v_KN
        return torch.cat([v_KN, torch.stack([each.expand(v_KN.shape[1]) for each in self.extra()]).to(v_KN.dtype)])

    def extra(self) -> list[Tensor]:
        """The parameters and buffers that the function reads besides its arguments."""
        assert self.program is not None
        if self._module is None:
            return []
        module = self._module()
        return [getattr(module, name) for name in self.program.extra]

    def implementation(self, backend: str, sample: Tensor) -> Any:
        """What has `forward`, `backward` and `local` for tensors like `sample`; None for the function itself."""
        if self.program is None:
            return None
        module = _OP.module(backend, sample)
        if module is reference:
            return None
        try:
            return module.implementation(self, sample.dtype)
        except (build.BuildError, Differs) as error:
            self._give_up(str(error))
            return None

    def _give_up(self, why: str) -> None:
        self.program = None
        sentence = f"the recurrence of {self.name} runs step by step in torch, which is slower: {why}"
        if sentence not in _said:
            _said.add(sentence)
            _log.warning(sentence)


def _last(after_PTBN: Tensor) -> Tensor:
    """The last state, [B, P*N]."""
    return after_PTBN[0, -1].clone() if len(after_PTBN) == 1 else torch.cat(after_PTBN[:, -1].unbind(0), -1)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, impl: Any, u: Tensor, v: Tensor, state: Tensor, is_init: Tensor) -> tuple[Tensor, ...]:
        after, kept = impl.forward(u, v, state, is_init, keep=True)
        ctx.impl = impl
        ctx.save_for_backward(u, v, state, is_init, after, kept)
        ctx.set_materialize_grads(False)
        return *after.unbind(0), _last(after)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if all(grad is None for grad in grads):
            return None, None, None, None, None
        return None, *ctx.impl.backward(*ctx.saved_tensors, grads[:-1], grads[-1]), None
