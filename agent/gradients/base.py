"""The gradient engine contract: what flows into dL/dtheta through the state that a chunk starts from.

    dL/dtheta = dL/dtheta at fixed state_0  +  dL/dstate_0 * dstate_0/dtheta
                (inside the chunk)             (the carry S)

An engine is an autograd node on the initial state plus the carry that it reads. Life of a chunk:

    state_0 = engine.attach(state_0, index)     # differentiable; loss.backward() adds the carry's term
    trace = engine.trace(chunk)                 # before the parameters change: what the carry must see of the chunk
    ... optimiser steps ...
    engine.advance(trace)                       # the carry now belongs to the chunk's last state
    engine.reset(mask)                          # copies whose state was reset from outside
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import Acted, Cell

if TYPE_CHECKING:
    from lifelong.agent.policy import Policy


class _Boundary(torch.autograd.Function):
    """Identity on the state; backward gives each parameter what `engine.boundary` says."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, state_BS: Tensor, engine: GradientEngine, index: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.engine, ctx.index = engine, index
        return state_BS.view_as(state_BS)

    @staticmethod
    def backward(ctx: Any, grad_BS: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (None, None, None, *ctx.engine.boundary(grad_BS, ctx.index))


def boundary(state_BS: Tensor, engine: GradientEngine, index: Tensor | None, parameters: Sequence[Tensor]) -> Tensor:
    """`state_BS` as a function of `parameters`, whose gradients `engine.boundary` gives, in this order."""
    attached: Tensor = _Boundary.apply(state_BS, engine, index, *parameters)  # type: ignore[no-untyped-call]
    return attached


class GradientEngine:
    """Base of all engines; by itself it carries nothing.

    Args:
        cell: the recurrent cell whose parameters the carry differentiates.
        copies: number of environment copies B.
    """

    #: the Jacobian structures that the engine supports
    jacobians: ClassVar[tuple[str, ...]] = ("diagonal", "block", "linear_diagonal", "dense")
    #: whether it takes a cell that is made of cells as one, and not part by part
    whole: ClassVar[bool] = False
    #: how the carry is approximate, in a few words, and how the gradient inside the chunk is, if it is
    approximation: str = ""
    inside: str = ""

    def __init__(self, cell: Cell, copies: int) -> None:
        self.cell = cell
        self.copies = copies

    def setup(self, policy: Policy) -> None:
        """Called once, before anything else, for engines that need more than the cell.

        Raises:
            ConfigError: the engine cannot train this policy.
        """

    def attach(self, state_BS: Tensor, index: Tensor | None = None) -> Tensor:
        """`state_BS` as a function of the parameters: same values, and a backward pass that adds the carry's term.

        Args:
            state_BS: the (detached) state that the chunk starts from; row i belongs to copy `index[i]`.
            index: int64 copies of the rows; None means all copies in order.
        """
        return state_BS

    def boundary(self, grad_BS: Tensor, index: Tensor | None) -> tuple[Tensor, ...]:
        """The carry's term of the gradient of every parameter that `attach` names, given dL/dstate_0 [B, S]."""
        raise NotImplementedError

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        """The cell's `sequence`, with the backward pass that the engine has inside a chunk: exact by default."""
        return self.cell.sequence(x_TBD, state_BS, is_init_TB, acted)

    def trace(
        self,
        x_TBD: Tensor,
        state_TBS: Tensor,
        is_init_TB: Tensor,
        index: Tensor | None = None,
        *,
        only_pass: bool = False,
    ) -> Any:
        """What `advance` needs of a chunk, with the parameters that produced it.

        Args:
            x_TBD: cell inputs.
            state_TBS: state before each step, before any reset.
            is_init_TB: reset flags.
            index: int64 copies of the chunk; None means all copies in order.
            only_pass: there will be one backward pass over all these copies before `advance`, so that an engine may
                read its carry for the gradient and move it at the same time.
        """
        return None

    def advance(self, trace: Any) -> None:
        """Move the carry from the chunk's first state to its last."""

    def reset(self, mask_B: Tensor) -> None:
        """Zero the carry of the copies in `mask_B`, whose state was reset outside a chunk."""

    def reset_units(self, units: Tensor, index: Tensor | None = None) -> None:
        """Zero the carry of re-initialised `units` (int64), whose history no longer counts, in the copies `index`."""

    def exact_parameters(self) -> list[str]:
        """Names of the cell's parameters whose gradient is exact over the whole history, not truncated at T."""
        return []

    def approximate_parameters(self) -> list[str]:
        """Names of the cell's parameters whose gradient has the whole history, but as `approximation` says."""
        return []

    @classmethod
    def carry_numbers(cls, cell: Cell) -> int:
        """How many numbers the carry of one copy has; the cell may lie on the device `meta`."""
        return 0

    def seed(self, seed: int) -> None:
        """Where an engine that draws random numbers takes them from."""

    def report(self) -> dict[str, Tensor]:
        """Scalars for the log; by itself what the cell's solver took for the last sequence, if it has one."""
        solver = self.cell.solver
        return {} if solver is None else solver.report(next(self.cell.parameters()).detach())

    def histograms(self) -> dict[str, Tensor]:
        """Positive numbers of which TensorBoard shows how they are distributed."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The carry; the copies are the first dimension of every tensor."""
        return {}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
