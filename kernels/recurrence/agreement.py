"""Whether what the compiler made of a recurrence is what the recurrence does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lifelong.kernels.recurrence import reference
from lifelong.kernels.recurrence.reference import Step

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
_AS_BAD = 10.0  # times the error of eager torch in the same precision


class Differs(Exception):
    """The compiled recurrence is not the traced function; the message says in what."""


def check(compiled: Any, step: Step, weights: Sequence[Tensor] = ()) -> None:
    """Compares forward, backward and local derivatives on small random inputs, some of whose states are reset.

    Args:
        compiled: what is checked, a backend's implementation.
        step: the function.
        weights: values of what it reads besides its arguments, one number or [N] each.

    Raises:
        Differs: the error is above 1e-5 (float32) or 1e-12 (float64) of the values and also above ten times that of the
            function itself in that precision.
    """
    program, dtype = compiled.program, compiled.dtype
    T, B, N = 3, 5, max([each.numel() for each in weights if each.numel() > 1], default=19)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).double()

    u, v, state = normal(T, B, program.gates * N), normal(program.carried, N), normal(B, program.parts * N)
    before, last = normal(T, B, program.parts * N), normal(B, program.parts * N)
    e = normal(program.parts, T, B, N)
    is_init = torch.rand(T, B, generator=generator) < 0.3

    def eager(kind: torch.dtype) -> list[Tensor]:
        inputs = (u.to(kind).requires_grad_(), v.to(kind).requires_grad_(), state.to(kind).requires_grad_())
        with torch.enable_grad():
            parts, final = reference.sequence(step, *inputs, is_init)
            total = sum((part * g.to(kind)).sum() for part, g in zip(parts, e, strict=True))
            total = total + (final * last.to(kind)).sum()
            grads = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        local = reference.local(step, u.to(kind), v.to(kind), before.to(kind), is_init)
        return [torch.stack(parts).detach(), *grads, *local]

    true, same = eager(torch.float64), eager(dtype)
    mine = [each.to(dtype) for each in (u, torch.cat([v, *[w.detach().double().expand(1, N) for w in weights]]), state)]
    after, kept = compiled.forward(*mine, is_init, keep=True)
    du, dv, dstate = compiled.backward(*mine, is_init, after, kept, e.to(dtype).unbind(0), last.to(dtype))
    got = [after, du, dv[: program.carried], dstate]
    got += compiled.local(*mine[:2], before.to(dtype), is_init)
    names = ("its states", *["the gradient to its " + what for what in ("drives", "weights", "first state")])
    names += tuple(
        f"the derivative of its state by {what}" for what in ("the state before", "its drives", "its weights")
    )
    for name, a, b, c in zip(names, got, true, same, strict=True):
        allowed = _TOLERANCE[dtype] + _AS_BAD * _error(c, b)
        if not _error(a, b) <= allowed:
            raise Differs(f"compiled, {name} would be off by {_error(a, b):.0e}")


def _error(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected, where that is finite."""
    finite = expected.isfinite()
    got, expected = got.double()[finite], expected.double()[finite]
    return float((got - expected).norm() / (expected.norm() + 1e-30)) if expected.numel() else 0.0
