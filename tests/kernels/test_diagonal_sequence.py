"""The diagonal GRU: every backend against the reference, resets, splitting, local derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from kernels.diagonal_sequence import diagonal_gru_local, diagonal_gru_sequence
from tests.kernels.support import BACKENDS, FAST_BACKENDS, assert_close, gradients

SHAPES = [(1, 1, 1), (1, 5, 33), (7, 3, 17), (16, 9, 64)]
RESETS = ["none", "some", "all", "first"]


def problem(T: int, B: int, N: int, resets: str = "some", dtype: torch.dtype = torch.float64) -> tuple:
    """(u, v, h0, is_init), the first three requiring gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    is_init = torch.rand(T, B, generator=generator) < {"none": 0.0, "some": 0.25, "all": 2.0, "first": 0.0}[resets]
    if resets == "first":
        is_init[0] = True
    return normal(T, B, 3 * N), normal(3 * N), normal(B, N), is_init


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_the_reference(backend: str, shape: tuple[int, int, int], resets: str, dtype: torch.dtype) -> None:
    inputs = problem(*shape, resets, dtype)
    got, expected = (diagonal_gru_sequence(*inputs, backend=name) for name in (backend, "reference"))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for a, b in zip((*got, *gradients(got, inputs[:3])), (*expected, *gradients(expected, inputs[:3])), strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    *inputs, is_init = problem(4, 3, 2)
    assert gradcheck(lambda u, v, h: diagonal_gru_sequence(u, v, h, is_init, backend=backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", range(1, 6))
def test_splitting_with_carried_state_is_one_run(backend: str, split: int) -> None:
    u, v, h0, is_init = inputs = problem(6, 5, 7)
    whole = diagonal_gru_sequence(*inputs, backend=backend)
    first, middle = diagonal_gru_sequence(u[:split], v, h0, is_init[:split], backend=backend)
    second, last = diagonal_gru_sequence(u[split:], v, middle, is_init[split:], backend=backend)
    parts = (torch.cat([first, second]), last)
    for a, b in zip((*parts, *gradients(parts, inputs[:3])), (*whole, *gradients(whole, inputs[:3])), strict=True):
        assert_close(a, b, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_crosses_a_reset(backend: str) -> None:
    u, v, h0, is_init = problem(6, 5, 7, "none")
    is_init[3] = True
    h, _ = diagonal_gru_sequence(u, v, h0, is_init, backend=backend)
    du, dh0 = torch.autograd.grad(h[3:].sum(), (u, h0))
    assert not du[:3].any()
    assert not dh0.any()
    fresh, _ = diagonal_gru_sequence(u[3:], v, torch.zeros_like(h0), is_init[:3], backend=backend)
    assert_close(h[3:], fresh, 1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned_memory")
def test_local_is_what_autograd_says(backend: str) -> None:
    u, v, _, is_init = problem(4, 3, 5)
    h_prev = torch.randn(4, 3, 5, dtype=torch.float64).requires_grad_()
    a, l = diagonal_gru_local(u, v, h_prev, is_init, backend=backend)  # noqa: E741
    steps = [
        diagonal_gru_sequence(u[t, None], v, h_prev[t], is_init[t, None], backend="reference")[1] for t in range(4)
    ]
    expected_l, expected_a = torch.autograd.grad(torch.stack(steps).sum(), (u, h_prev))
    assert_close(a, expected_a, 1e-13)
    assert_close(l, expected_l, 1e-13)
