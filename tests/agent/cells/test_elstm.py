"""eLSTM against the paper's formula in NumPy, and its derivatives against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lifelong.agent.cells.base import CellChunk
from lifelong.agent.cells.elstm import ELSTM
from lifelong.kernels import dispatch

D, N, T, B = 5, 6, 8, 3


def make() -> ELSTM:
    torch.manual_seed(0)
    cell = ELSTM(D, size=N).double()
    torch.nn.init.normal_(cell.weight_recurrent)
    return cell


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_it_computes_equations_5_to_7_of_the_paper_with_resets() -> None:
    cell = make()
    p = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    rng = np.random.default_rng(1)
    x, c, is_init = rng.normal(size=(T, B, D)), rng.normal(size=(B, N)), rng.random((T, B)) < 0.3
    y, final = cell.sequence(torch.tensor(x), torch.tensor(c), torch.tensor(is_init))
    F, Z = p["weight_input"][:N], p["weight_input"][N:]
    for t in range(T):
        c = c * ~is_init[t][:, None]
        f = sigmoid(x[t] @ F.T + p["weight_recurrent"][0] * c + p["bias"][:N])
        z = np.tanh(x[t] @ Z.T + p["weight_recurrent"][1] * c + p["bias"][N:])
        c = f * c + (1 - f) * z
        o = sigmoid(
            np.concatenate([x[t], c], 1) @ np.concatenate([p["output_input"], p["output_state"]], 1).T
            + p["output_bias"]
        )
        np.testing.assert_allclose(y[t].detach().numpy(), o * c, atol=1e-12)
    np.testing.assert_allclose(final.detach().numpy(), c, atol=1e-12)


def test_the_forget_bias_is_drawn_from_its_range_and_the_candidates_is_zero() -> None:
    torch.manual_seed(0)
    bias = ELSTM(D, size=500, forget_bias=(1.0, 3.0)).bias
    forget = bias[:500]
    assert bool((forget >= 1).all()) and bool((forget <= 3).all()) and abs(float(forget.detach().mean()) - 2) < 0.1
    assert not bias[500:].any()


def test_the_kernels_local_derivatives_are_those_of_autograd_for_any_diagonal_cell() -> None:
    cell = make()
    g = torch.Generator().manual_seed(2)
    u = torch.randn(T, B, 2 * N, generator=g, dtype=torch.float64)
    state = torch.randn(T, B, N, generator=g, dtype=torch.float64)
    is_init = torch.rand(T, B, generator=g) < 0.3
    kernel = cell.local_derivatives(u, cell.weight_recurrent, state, is_init)
    with dispatch.force("reference"):
        generic = cell.local_derivatives(u, cell.weight_recurrent, state, is_init)
    for a, b in zip(kernel, generic, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("with_boundary", [False, True])
def test_the_fused_advance_of_the_carry_is_the_generic_one(with_boundary: bool) -> None:
    cell = make()
    g = torch.Generator().manual_seed(4)
    shapes = ((T, B, D), (T, B, N), (B, 2, N, D), (B, 4, N), (B, N))
    x, state, weight, small, boundary = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    is_init = torch.rand(T, B, generator=g) < 0.3
    parameters = tuple(p.detach() for p in (cell.weight_input, cell.bias, cell.weight_recurrent))
    results = []
    for backend in ("auto", "reference"):
        carry = weight.clone(), small.clone()
        chunk = CellChunk(x, state, is_init, *parameters)
        with dispatch.force(backend):
            results.append((*carry, *cell.advance_carry(*carry, chunk, boundary if with_boundary else None)))
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None) == (not with_boundary and a is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reset", [False, True])
def test_local_derivatives_are_the_jacobians_of_one_step(reset: bool) -> None:
    cell = make()
    g = torch.Generator().manual_seed(3)
    x, c = (torch.randn(1, n, generator=g, dtype=torch.float64) for n in (D, N))
    is_init = torch.full((1, 1), reset)

    def one_step(u: torch.Tensor, v: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return cell.recurrence(u.split(N, -1), v.unbind(0), state * (not reset))[0]

    u = cell.drive(x).detach()
    du, dv, dc = torch.autograd.functional.jacobian(one_step, (u, cell.weight_recurrent.detach(), c))
    a, local, vector = cell.local_derivatives(u[None], cell.weight_recurrent, c[None], is_init)
    torch.testing.assert_close(torch.diag(a[0, 0]), dc[:, 0], rtol=1e-10, atol=1e-13)
    for gate in range(2):
        torch.testing.assert_close(torch.diag(local[0, 0, gate]), du[:, 0, gate * N : (gate + 1) * N])
        torch.testing.assert_close(torch.diag(vector[0, 0, gate]), dv[:, gate])
    assert bool((a == 0).all()) == reset
