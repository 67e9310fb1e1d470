"""The diagonal scan: every backend against the reference, real and complex, both directions."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from lifelong.kernels.diag_scan import diag_scan
from tests.kernels.support import BACKENDS, FAST_BACKENDS, assert_close, gradients

SHAPES = [(1, 1, 1), (1, 5, 33), (7, 3, 17), (16, 9, 64)]
RESETS = ["none", "some", "all", "first"]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def problem(T: int, B: int, N: int, resets: str = "some", dtype: torch.dtype = torch.float64) -> tuple:
    """(a, b, h0, is_init), the first three requiring gradients."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.complex128 if dtype.is_complex else torch.float64

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=kind, generator=generator).to(dtype).requires_grad_()

    is_init = torch.rand(T, B, generator=generator) < {"none": 0.0, "some": 0.25, "all": 2.0, "first": 0.0}[resets]
    if resets == "first":
        is_init[0] = True
    return normal(T, B, N), normal(T, B, N), normal(B, N), is_init


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_the_reference(
    backend: str, shape: tuple[int, int, int], resets: str, dtype: torch.dtype, reverse: bool
) -> None:
    inputs = problem(*shape, resets, dtype)
    got, expected = (diag_scan(*inputs, reverse, backend=name) for name in (backend, "reference"))
    tolerance = 1e-5 if dtype in (torch.float32, torch.complex64) else 1e-13
    for a, b in zip((*got, *gradients(got, inputs[:3])), (*expected, *gradients(expected, inputs[:3])), strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(backend: str, dtype: torch.dtype, reverse: bool) -> None:
    *inputs, is_init = problem(4, 3, 2, "some", dtype)
    assert gradcheck(lambda a, b, h: diag_scan(a, b, h, is_init, reverse, backend=backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_without_start_state_and_resets(backend: str, reverse: bool) -> None:
    a, b, h0, is_init = problem(5, 3, 4, "none")
    got = diag_scan(a, b, reverse=reverse, backend=backend)
    expected = diag_scan(a, b, torch.zeros_like(h0), is_init, reverse, backend="reference")
    for x, y in zip((*got, *gradients(got, (a, b))), (*expected, *gradients(expected, (a, b))), strict=True):
        assert_close(x, y, 1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", range(1, 6))
def test_splitting_with_carried_state_is_one_run(backend: str, split: int) -> None:
    a, b, h0, is_init = inputs = problem(6, 5, 7)
    whole = diag_scan(*inputs, backend=backend)
    first, middle = diag_scan(a[:split], b[:split], h0, is_init[:split], backend=backend)
    second, last = diag_scan(a[split:], b[split:], middle, is_init[split:], backend=backend)
    parts = (torch.cat([first, second]), last)
    for x, y in zip((*parts, *gradients(parts, inputs[:3])), (*whole, *gradients(whole, inputs[:3])), strict=True):
        assert_close(x, y, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_is_forward_on_flipped_time(backend: str) -> None:
    a, b, h0, is_init = problem(6, 5, 7)
    h, last = diag_scan(a, b, h0, is_init, reverse=True, backend=backend)
    flipped, flipped_last = diag_scan(a.flip(0), b.flip(0), h0, is_init.flip(0), backend=backend)
    assert_close(h, flipped.flip(0), 1e-15)
    assert_close(last, flipped_last, 1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_crosses_a_reset(backend: str) -> None:
    a, b, h0, is_init = problem(6, 5, 7, "none")
    is_init[3] = True
    h, _ = diag_scan(a, b, h0, is_init, backend=backend)
    da, db, dh0 = torch.autograd.grad(h[3:].sum(), (a, b, h0))
    assert not da[:4].any()
    assert not db[:3].any()
    assert db[3:].all()
    assert not dh0.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradient_from_one_output_only(backend: str, which: int) -> None:
    inputs = problem(4, 3, 5)
    got = torch.autograd.grad(diag_scan(*inputs, backend=backend)[which].sum(), inputs[:3])
    expected = torch.autograd.grad(diag_scan(*inputs, backend="reference")[which].sum(), inputs[:3])
    for x, y in zip(got, expected, strict=True):
        assert_close(x, y, 1e-13)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_lazily_conjugated_inputs(backend: str) -> None:
    a, b, h0, is_init = problem(4, 3, 5, dtype=torch.complex128)
    got = diag_scan(a.conj(), b.conj(), h0.conj(), is_init, backend=backend)[0]
    assert_close(got, diag_scan(a, b, h0, is_init, backend="reference")[0].conj(), 1e-13)
