"""Exact real-time recurrent learning for cells with a diagonal state Jacobian, one batched matmul a chunk.

Williams & Zipser 1989; element-wise cells: Irie, Gopalakrishnan, Schmidhuber 2024 (arXiv 2305.19044). The chunked form
exchanges the order of summation of per-step RTRL, so it is the same gradient, with the carry read once and written once
per T steps instead of at every step: for c_t = r(u_t, v, c_{t-1}) with u_t = W x_t + b and a_t = dc_t/dc_{t-1},

    S_T = A S_0 + sum_t (P_t dc_t/du_t) x_t^T        P_t = a_{t+1} ... a_T,   A = a_1 ... a_T
    dL/dW = (inside the chunk) + sum_b dL/dc_0[b] S_0[b]

A reset at step t makes a_t zero, which removes all older history from the products. Memory does not grow with history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from agent.cells.base import DiagonalCell
from agent.errors import choice
from agent.gradients.base import GradientEngine
from kernels.rtrl import rtrl_advance, rtrl_advance_vector, rtrl_boundary


@dataclass
class Trace:
    """Derivatives of a chunk: a_TBN, dc/du [T, B, G, N], dc/dv [T, B, K, N] and the inputs x_TBD."""

    a: Tensor
    local: Tensor
    vector: Tensor
    x: Tensor


class _Boundary(torch.autograd.Function):
    """Identity on the state; backward gives each recurrent parameter sum_b dL/dc_0[b] * S[b]."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, state_BN: Tensor, engine: RTRL, index: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.engine, ctx.index = engine, index
        return state_BN.view_as(state_BN)

    @staticmethod
    def backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (None, None, None, *ctx.engine.boundary(grad_BN, ctx.index))


class RTRL(GradientEngine):
    """Exact RTRL. The carry has the recurrent parameters' shape, once a copy: [B, G, N, D], [B, G, N], [B, K, N].

    Args:
        cell: the recurrent cell.
        copies: B.
        carry_dtype: how the carry of the input weights, which is nearly all of it, is stored. `float32`: in the type of
            the parameters. `bfloat16`: in half the memory, rounded once a chunk after sums in float32.

    Raises:
        ConfigError: unknown `carry_dtype`.
    """

    jacobians: ClassVar[tuple[str, ...]] = ("diagonal",)
    cell: DiagonalCell

    def __init__(self, cell: DiagonalCell, copies: int, *, carry_dtype: str = "float32") -> None:
        super().__init__(cell, copies)
        choice("carry_dtype of gradient rtrl", carry_dtype, ("float32", "bfloat16"))
        gates, vectors, N, D = len(cell.GATES), len(cell.VECTORS), cell.size, cell.input_size
        like = cell.weight_input
        stored = torch.bfloat16 if carry_dtype == "bfloat16" else like.dtype
        self.weight_BGND = torch.zeros(copies, gates, N, D, device=like.device, dtype=stored)
        self.bias_BGN = torch.zeros(copies, gates, N, device=like.device, dtype=like.dtype)
        self.vector_BKN = torch.zeros(copies, vectors, N, device=like.device, dtype=like.dtype)
        self.max_jacobian = torch.zeros((), device=like.device)

    def attach(self, state_BS: Tensor, index: Tensor | None = None) -> Tensor:
        cell = self.cell
        attached: Tensor = _Boundary.apply(  # type: ignore[no-untyped-call]
            state_BS, self, index, cell.weight_input, cell.bias, cell.weight_recurrent
        )
        return attached

    def boundary(self, grad_BN: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The carry's term of dL/dW [G*N, D], dL/db [G*N] and dL/dv [K, N], given dL/dstate_0 [B, N]."""
        bias, vector = self.bias_BGN, self.vector_BKN
        if index is not None:
            bias, vector = bias[index], vector[index]
        grad_weight = rtrl_boundary(self.weight_BGND, grad_BN.contiguous(), index)
        grad_bias = torch.einsum("bn,bgn->gn", grad_BN, bias)
        grad_vector = torch.einsum("bn,bkn->kn", grad_BN, vector)
        return grad_weight.flatten(0, 1), grad_bias.flatten(), grad_vector

    @torch.no_grad()
    def trace(self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor) -> Trace:
        return Trace(*self.cell.local_derivatives(self.cell.drive(x_TBD), state_TBS, is_init_TB), x_TBD)

    @torch.no_grad()
    def advance(self, trace: Trace, index: Tensor | None = None) -> None:
        self.max_jacobian = trace.a.abs().max()
        carries = (self.weight_BGND, self.bias_BGN, self.vector_BKN)
        weight, bias, vector = rows = carries if index is None else tuple(carry[index] for carry in carries)
        rtrl_advance(weight, trace.a, trace.local, trace.x)
        rtrl_advance_vector(bias, trace.a, trace.local)
        rtrl_advance_vector(vector, trace.a, trace.vector)
        if index is not None:
            for carry, moved in zip(carries, rows, strict=True):
                carry[index] = moved

    def reset(self, mask_B: Tensor) -> None:
        for carry in (self.weight_BGND, self.bias_BGN, self.vector_BKN):
            carry.masked_fill_(mask_B.view(-1, *([1] * (carry.dim() - 1))), 0.0)

    def reset_units(self, units: Tensor, index: Tensor | None = None) -> None:
        copies = torch.arange(self.copies, device=units.device) if index is None else index
        for carry in (self.weight_BGND, self.bias_BGN, self.vector_BKN):
            carry[copies.unsqueeze(-1), :, units] = 0.0

    def exact_parameters(self) -> list[str]:
        return self.cell.recurrent_parameters()

    def report(self) -> dict[str, Tensor]:
        return {"carry_max_jacobian": self.max_jacobian, "carry_max": self.weight_BGND.abs().max()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight_BGND, "bias": self.bias_BGN, "vector": self.vector_BKN}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.weight_BGND.copy_(saved["weight"])
        self.bias_BGN.copy_(saved["bias"])
        self.vector_BKN.copy_(saved["vector"])
