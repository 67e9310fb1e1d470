"""Checks of `benchmarks/gpu.py`: every backend of every op against the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.gpu_parts.rows import Row, Sizes, relative_rms
from lifelong.agent.cells.base import ElementwiseCell
from lifelong.agent.registry import build
from lifelong.kernels.advantages import gae, vtrace
from lifelong.kernels.diag_scan import diag_scan
from lifelong.kernels.elstm import core, elstm_layer
from lifelong.kernels.gru_sequence import gru_sequence
from lifelong.kernels.lstm_sequence import lstm_sequence
from lifelong.kernels.project import project
from lifelong.kernels.rtrl import rtrl_advance, rtrl_advance_vector, rtrl_boundary
from lifelong.kernels.rtrl_block import rtrl_block_advance, rtrl_block_advance_vector, rtrl_block_boundary

#: relative RMS error against the reference that a float32 backend may have
TOLERANCE = 1e-4


class Inputs:
    """Random tensors on the device, the same for every backend."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0, grad: bool = False) -> Tensor:
        """Normal numbers."""
        return (torch.randn(shape, generator=self.generator) * scale).to(self.device).requires_grad_(grad)

    def flags(self, *shape: int) -> Tensor:
        """True with probability 0.1, and everywhere in copy 0 at the first step."""
        mask = torch.rand(shape, generator=self.generator) < 0.1
        mask[0, 0] = True
        return mask.to(self.device)


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a fixed random linear function of all outputs."""
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(o.shape, generator=generator).to(o.device) for o in outputs]
    total = torch.stack([(o * w).sum() for o, w in zip(outputs, weights, strict=True)]).sum()
    return torch.autograd.grad(total, list(inputs))


def op_results(op: str, shape: tuple[int, int, int, int], device: torch.device, backend: str) -> tuple[Tensor, ...]:
    """Outputs and gradients of an op on one backend."""
    (T, B, N, D), make = shape, Inputs(device)
    normal, is_init = make.normal, make.flags(T, B)
    weights = {"scale": 0.3, "grad": True}
    if op.endswith("_recurrence"):
        cell: ElementwiseCell = build("cell", {"kind": op.removesuffix("_recurrence"), "size": N}, D).to(device)
        recurrence, gates, vectors = cell.compiled_recurrence(), len(cell.GATES), len(cell.VECTORS)
        inputs = (
            normal(T, B, gates * N, grad=True),
            normal(vectors, N, **weights),
            normal(B, cell.state_size, grad=True),
        )
        parts, last = recurrence.sequence(*inputs, is_init, backend=backend)
        local = recurrence.local(*inputs[:2], normal(T, B, cell.state_size), is_init, backend=backend)
        return (*parts, last, *gradients((*parts, last), inputs), *local)
    if op == "rtrl_block_boundary":
        carry, index = normal(B, 2, 3, N, D), torch.arange(B - 1, -1, -2, device=device)
        rows = normal(B, 2, N)
        return (
            rtrl_block_boundary(carry, rows, backend=backend),
            rtrl_block_boundary(carry, rows[: len(index)], index, backend=backend),
        )
    if op in ("rtrl_block_advance", "rtrl_block_advance_vector"):
        J = torch.tanh(normal(T, B, 2, 2, N)).masked_fill(is_init[..., None, None, None], 0.0) / 2
        if op == "rtrl_block_advance_vector":
            return (rtrl_block_advance_vector(normal(B, 2, 5, N), J, normal(T, B, 2, 5, N), backend=backend),)
        return (rtrl_block_advance(normal(B, 2, 3, N, D), J, normal(T, B, 2, 3, N), normal(T, B, D), backend=backend),)
    if op in ("elstm_layer", "elstm_advance"):
        shapes = ((T, B, D), (2 * N, D), (2 * N,), (2 * N,), (N, D), (N, N), (N,), (B, N))
        inputs = tuple(normal(*s, scale=s[-1] ** -0.5 if len(s) == 2 else 0.5, grad=True) for s in shapes)
        outputs = elstm_layer(*inputs, is_init, backend=backend)
        if op == "elstm_layer":
            return (*outputs, *gradients(outputs[:3], inputs))
        carry, small, boundary = normal(B, 2, N, D), normal(B, 4, N), normal(B, N)
        states = torch.cat([inputs[7][None], outputs[2][:-1]]).detach()
        plain = tuple(tensor.detach() for tensor in inputs[:4])
        x, weight, bias, v = plain
        added = core().advance(
            carry[:, None],
            small[:, None],
            x,
            weight,
            bias,
            v.view(2, N),
            states,
            is_init,
            boundary_BS=boundary,
            backend=backend,
        )
        return (carry, small, *(a for a in added if a is not None))
    if op in ("gru_sequence", "lstm_sequence"):
        gates, states = (3, 1) if op == "gru_sequence" else (4, 2)
        u, weight = normal(T, B, gates * N, grad=True), normal(gates * N, N, scale=N**-0.5, grad=True)
        state = normal(B, states * N, scale=0.5, grad=True)
        if op == "gru_sequence":
            bias = normal(N, grad=True)
            outputs, inputs = gru_sequence(u, weight, bias, state, is_init, backend=backend), (u, weight, bias, state)
        else:
            outputs, inputs = lstm_sequence(u, weight, state, is_init, backend=backend), (u, weight, state)
        return (*outputs, *gradients(outputs, inputs))
    if op == "diag_scan":
        a = torch.sigmoid(normal(T, B, N)).requires_grad_()
        inputs = (a, normal(T, B, N, grad=True), normal(B, N, grad=True))
        outputs = (*diag_scan(*inputs, is_init, backend=backend), *diag_scan(*inputs, is_init, True, backend=backend))
        return (*outputs, *gradients(outputs, inputs))
    if op in ("gae", "vtrace"):
        data = (normal(T, B), normal(T, B), normal(B), is_init, make.flags(T, B), normal(T, B))
        if op == "gae":
            return gae(*data, 0.99, 0.95, backend=backend)
        return vtrace(normal(T, B, scale=0.3), *data, 0.99, 0.95, backend=backend)
    a = torch.tanh(normal(T, B, N)).masked_fill(is_init[..., None], 0.0)
    boundary, carry = normal(B, N), normal(B, 2, N, D)
    if op == "rtrl_advance":
        new, grad = rtrl_advance(carry, a, normal(T, B, 2, N), normal(T, B, D), boundary_BN=boundary, backend=backend)
        return new, *([] if grad is None else [grad])
    if op == "rtrl_advance_vector":
        small, grad = rtrl_advance_vector(normal(B, 3, N), a, normal(T, B, 3, N), boundary_BN=boundary, backend=backend)
        return small, *([] if grad is None else [grad])
    if op == "rtrl_boundary":
        index = torch.arange(B - 1, -1, -2, device=device)
        rows = boundary[: len(index)].contiguous()
        return rtrl_boundary(carry, boundary, backend=backend), rtrl_boundary(carry, rows, index, backend=backend)
    if op == "project":
        basis, left = (torch.linalg.qr(normal(n, min(D, N)).cpu())[0].to(device) for n in (D + N, N))
        return (project(normal(N, D + N), basis, left, backend=backend),)
    raise AssertionError(f"no case for {op}")


#: every op; all of them have a Triton backend
OPS = (
    "elstm_layer",
    "elstm_advance",
    "diag_scan",
    "rtrl_advance",
    "rtrl_advance_vector",
    "rtrl_boundary",
    "gae",
    "vtrace",
    "elstm_recurrence",
    "diagonal_gru_recurrence",
    "diagonal_lstm_recurrence",
    "rtrl_block_advance",
    "rtrl_block_advance_vector",
    "rtrl_block_boundary",
    "gru_sequence",
    "lstm_sequence",
    "project",
)


def check_op(op: str, backend: str, device: torch.device, sizes: Sizes) -> Row:
    """An op on `backend` against the reference on the same device, outputs and gradients, at every size."""
    worst = 0.0
    for shape in sizes.kernels:
        got, expected = (op_results(op, shape, device, name) for name in (backend, "reference"))
        errors = [relative_rms(a, b) for a, b in zip(got, expected, strict=True)]
        worst = max(worst, *errors)
    return Row(f"{op} {backend}", "PASS" if worst <= TOLERANCE else "FAIL", worst, f"error, at most {TOLERANCE:g}")
