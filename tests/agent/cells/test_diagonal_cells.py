"""The diagonal GRU and LSTM: what their kernels say is what autograd says, and their time constants are spread."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lifelong.agent.cells.base import CellChunk
from lifelong.agent.cells.diagonal_gru import DiagonalGRU
from lifelong.agent.cells.diagonal_lstm import DiagonalLSTM
from lifelong.kernels import dispatch

D, N, T, B = 5, 6, 8, 3
pytestmark = pytest.mark.parametrize("kind", [DiagonalGRU, DiagonalLSTM])


def make(kind: type[Any]) -> Any:
    torch.manual_seed(0)
    cell = kind(D, size=N).double()
    torch.nn.init.normal_(cell.weight_recurrent)
    return cell


def data(cell: Any, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Random tensors of these shapes, then states before each step, then reset flags."""
    g = torch.Generator().manual_seed(2)
    tensors = [torch.randn(s, generator=g, dtype=torch.float64) for s in (*shapes, (T, B, cell.state_size))]
    return [*tensors, torch.rand(T, B, generator=g) < 0.3]


def test_the_kernels_local_derivatives_are_those_of_autograd(kind: type[Any]) -> None:
    cell = make(kind)
    u, state, is_init = data(cell, (T, B, 3 * N))
    kernel = cell.local_derivatives(u, cell.weight_recurrent.detach(), state, is_init)
    with dispatch.force("reference"):
        generic = cell.local_derivatives(u, cell.weight_recurrent, state, is_init)
    for a, b in zip(kernel, generic, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_moving_the_carry_with_a_boundary_also_gives_its_gradient(kind: type[Any]) -> None:
    cell = make(kind)
    parts, small = cell.PARTS, len(cell.GATES) + len(cell.VECTORS)
    shapes = ((T, B, D), (B, parts * 3, N, D), (B, parts * small, N), (B, cell.state_size))
    x, weight, vectors, boundary, state, is_init = data(cell, *shapes)
    parameters = tuple(p.detach() for p in (cell.weight_input, cell.bias, cell.weight_recurrent))
    expected = cell.carry_gradient(weight, vectors, boundary, None)
    by_hand = (weight.view(B, parts, 3, N, D) * boundary.view(B, parts, 1, N, 1)).sum((0, 1))
    torch.testing.assert_close(expected[0], by_hand, rtol=1e-12, atol=1e-12)
    carry, alone = (weight.clone(), vectors.clone()), (weight.clone(), vectors.clone())
    *grads, largest = cell.advance_carry(*carry, CellChunk(x, state, is_init, *parameters), boundary)
    nothing = cell.advance_carry(*alone, CellChunk(x, state, is_init, *parameters), None)
    assert nothing[:2] == (None, None) and torch.equal(nothing[2], largest)
    for a, b in zip((*grads, *carry), (*expected, *alone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_bias_that_decides_how_long_a_unit_remembers_is_drawn_from_its_range(kind: type[Any]) -> None:
    torch.manual_seed(0)
    name, (low, high) = ("forget_bias", (1.0, 3.0)) if kind is DiagonalLSTM else ("update_bias", (-3.0, -1.0))
    bias = kind(D, size=500, **{name: (low, high)}).bias.detach()
    assert low <= float(bias[:500].min()) and float(bias[:500].max()) <= high
    assert abs(float(bias[:500].mean()) - (low + high) / 2) < 0.1
    assert not bias[500:].any()


def test_acting_without_a_gradient_is_the_step(kind: type[Any]) -> None:
    cell = make(kind)
    x, state, is_init = data(cell, (T, B, D))
    with torch.no_grad():
        acted = cell.masked_step(x[0], state[0], is_init[0])
    expected = cell.step(x[0], state[0] * (~is_init[0]).unsqueeze(-1))
    for a, b in zip(acted, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
