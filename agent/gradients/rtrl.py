"""Exact real-time recurrent learning for cells that couple no two units, one batched matmul a chunk.

Williams & Zipser 1989; element-wise cells: Irie, Gopalakrishnan, Schmidhuber 2024 (arXiv 2305.19044). The chunked form
exchanges the order of summation of per-step RTRL, so it is the same gradient, with the carry read once and written once
per T steps instead of at every step: for c_t = r(u_t, v, c_{t-1}) with u_t = W x_t + b and a_t = dc_t/dc_{t-1},

    S_T = A S_0 + sum_t (P_t dc_t/du_t) x_t^T        P_t = a_{t+1} ... a_T,   A = a_1 ... a_T
    dL/dW = (inside the chunk) + sum_b dL/dc_0[b] S_0[b]

A reset at step t makes a_t zero, which removes all older history from the products. Memory does not grow with history.
A cell with two parts of state a unit (h, c) has a 2x2 block in place of a_t and a pair in place of dc_t/du_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.cells.base import Cell, CellChunk, ElementwiseCell
from lifelong.agent.gradients.base import GradientEngine, boundary


@dataclass
class Trace:
    """A chunk of the copies `index` (None: all in order), and whether the carry has been moved over it."""

    chunk: CellChunk
    index: Tensor | None
    advanced: bool = False


class RTRL(GradientEngine):
    """Exact RTRL. The carry has the recurrent parameters' shape, once a copy and part of a unit's state: one part in a
    diagonal cell, [B, G, N, D] for the input weights and [B, G + K, N] for biases and element-wise weights; with two
    parts all of h's sensitivities come first, then all of c's: [B, 2G, N, D] and [B, 2(G + K), N].

    Args:
        cell: the recurrent cell.
        copies: B.
        carry_dtype: how the carry of the input weights, which is nearly all of it, is stored. `float32`: in the type of
            the parameters. `bfloat16`: in half the memory, rounded once a chunk after sums in float32.
    """

    jacobians: ClassVar[tuple[str, ...]] = ("diagonal", "linear_diagonal", "block")
    cell: ElementwiseCell

    def __init__(
        self, cell: ElementwiseCell, copies: int, *, carry_dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        super().__init__(cell, copies)
        gates, vectors, N, D = len(cell.GATES), len(cell.VECTORS), cell.places, cell.input_size
        like = cell.weight_input
        stored = torch.bfloat16 if carry_dtype == "bfloat16" else like.dtype
        self.weight_BGND = torch.zeros(copies, cell.PARTS * gates, N, D, device=like.device, dtype=stored)
        small = cell.PARTS * (gates + vectors)
        self.small_BMN = torch.zeros(copies, small, N, device=like.device, dtype=like.dtype)
        self.max_jacobian = torch.zeros((), device=like.device)
        self.only_pass: Trace | None = None

    def attach(self, state_BS: Tensor, index: Tensor | None = None) -> Tensor:
        parameters = [self.cell.get_parameter(name) for name in self.cell.recurrent_parameters()]
        return boundary(state_BS, self, index, parameters)

    def boundary(self, grad_BS: Tensor, index: Tensor | None) -> tuple[Tensor, ...]:
        """The carry's term of the gradients of the recurrent parameters, given dL/dstate_0 [B, S]."""
        if self.only_pass is not None:  # nobody reads the old carry again: take the gradient while it is advanced
            weight, small = self._move(self.only_pass, grad_BS.contiguous())
            assert weight is not None
            assert small is not None
        else:
            weight, small = self.cell.carry_gradient(self.weight_BGND, self.small_BMN, grad_BS.contiguous(), index)
        return self.cell.fold(weight, small)

    @torch.no_grad()
    def trace(
        self,
        x_TBD: Tensor,
        state_TBS: Tensor,
        is_init_TB: Tensor,
        index: Tensor | None = None,
        *,
        only_pass: bool = False,
    ) -> Trace:
        parameters = (parameter.clone() for parameter in self.cell.spread())
        trace = Trace(CellChunk(x_TBD, state_TBS, is_init_TB, *parameters), index)
        self.only_pass = trace if only_pass else None
        return trace

    def advance(self, trace: Trace) -> None:
        if not trace.advanced:
            self._move(trace, None)

    @torch.no_grad()
    def _move(self, trace: Trace, boundary_BS: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Advance the carry over the chunk; with a boundary, its product with the old carry."""
        index, weight_BGND, small_BMN = trace.index, self.weight_BGND, self.small_BMN
        if index is not None:
            weight_BGND, small_BMN = weight_BGND[index], small_BMN[index]
        weight_GND, small_MN, self.max_jacobian = self.cell.advance_carry(
            weight_BGND, small_BMN, trace.chunk, boundary_BS
        )
        if index is not None:
            self.weight_BGND[index], self.small_BMN[index] = weight_BGND, small_BMN
        trace.advanced, self.only_pass = True, None
        return weight_GND, small_MN

    def reset(self, mask_B: Tensor) -> None:
        for carry in (self.weight_BGND, self.small_BMN):
            carry.masked_fill_(mask_B.view(-1, *([1] * (carry.dim() - 1))), 0.0)

    def reset_units(self, units: Tensor, index: Tensor | None = None) -> None:
        copies = torch.arange(self.copies, device=units.device) if index is None else index
        for carry in (self.weight_BGND, self.small_BMN):
            carry.unflatten(2, (-1, self.cell.units))[copies.unsqueeze(-1), :, :, units] = 0.0

    @classmethod
    def carry_numbers(cls, cell: Cell) -> int:
        assert isinstance(cell, ElementwiseCell)
        return cell.PARTS * sum(cell.get_parameter(name).numel() for name in cell.recurrent_parameters())

    def exact_parameters(self) -> list[str]:
        return self.cell.recurrent_parameters()

    def report(self) -> dict[str, Tensor]:
        carry = {"carry_max_jacobian": self.max_jacobian, "carry_max": self.weight_BGND.abs().max()}
        return {**super().report(), **carry}

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight_BGND, "small": self.small_BMN}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.weight_BGND.copy_(saved["weight"])
        self.small_BMN.copy_(saved["small"])
