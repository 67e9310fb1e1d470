"""LSTM and GRU sequences: every backend against the reference, the reference against torch, resets, splitting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.autograd import gradcheck

from lifelong.kernels.gru_sequence import gru_sequence
from lifelong.kernels.lstm_sequence import lstm_sequence
from tests.kernels.support import BACKENDS, FAST_BACKENDS, assert_close, gradients

SHAPES = [(1, 1, 1), (1, 5, 33), (7, 3, 17), (9, 6, 64)]
RESETS = ["none", "some", "all", "first"]
OPS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {"lstm": lstm_sequence, "gru": gru_sequence}


def problem(
    op: str, T: int, B: int, N: int, resets: str = "some", dtype: torch.dtype = torch.float64
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(u, weights..., state) requiring gradients, and is_init."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, dtype=torch.float64, generator=generator) * scale).to(dtype).requires_grad_()

    is_init = torch.rand(T, B, generator=generator) < {"none": 0.0, "some": 0.25, "all": 2.0, "first": 0.0}[resets]
    if resets == "first":
        is_init[0] = True
    if op == "lstm":
        return [normal(T, B, 4 * N), normal(4 * N, N, scale=N**-0.5), normal(B, 2 * N)], is_init
    return [normal(T, B, 3 * N), normal(3 * N, N, scale=N**-0.5), normal(N), normal(B, N)], is_init


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_the_reference(op: str, backend: str, shape: tuple[int, ...], resets: str, dtype: torch.dtype) -> None:
    inputs, is_init = problem(op, *shape, resets, dtype)
    got, expected = (OPS[op](*inputs, is_init, backend=name) for name in (backend, "reference"))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for a, b in zip(
        (*got, *gradients(got, tuple(inputs))), (*expected, *gradients(expected, tuple(inputs))), strict=True
    ):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(op: str, backend: str) -> None:
    inputs, is_init = problem(op, 3, 2, 2)
    assert gradcheck(lambda *tensors: OPS[op](*tensors, is_init, backend=backend), inputs)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", range(1, 5))
def test_splitting_with_carried_state_is_one_run(op: str, backend: str, split: int) -> None:
    inputs, is_init = problem(op, 5, 4, 3)
    u, *weights, state = inputs
    whole = OPS[op](*inputs, is_init, backend=backend)
    first, middle = OPS[op](u[:split], *weights, state, is_init[:split], backend=backend)
    second, last = OPS[op](u[split:], *weights, middle, is_init[split:], backend=backend)
    parts = (torch.cat([first, second]), last)
    for a, b in zip(
        (*parts, *gradients(parts, tuple(inputs))), (*whole, *gradients(whole, tuple(inputs))), strict=True
    ):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_crosses_a_reset(op: str, backend: str) -> None:
    inputs, is_init = problem(op, 6, 4, 3, "none")
    is_init[3] = True
    h, _ = OPS[op](*inputs, is_init, backend=backend)
    du, *_, dstate = torch.autograd.grad(h[3:].sum(), inputs)
    assert not du[:3].any()
    assert not dstate.any()
    fresh, _ = OPS[op](inputs[0][3:], *inputs[1:-1], torch.zeros_like(inputs[-1]), is_init[:3], backend=backend)
    assert_close(h[3:], fresh, 1e-15)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradient_from_one_output_only(op: str, backend: str, which: int) -> None:
    inputs, is_init = problem(op, 4, 3, 5)
    got = torch.autograd.grad(OPS[op](*inputs, is_init, backend=backend)[which].sum(), inputs)
    expected = torch.autograd.grad(OPS[op](*inputs, is_init, backend="reference")[which].sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_resets_it_is_torch(backend: str) -> None:
    torch.manual_seed(0)
    T, B, N, D = 5, 3, 4, 6
    x, is_init = torch.randn(T, B, D).double(), torch.zeros(T, B, dtype=torch.bool)
    h0, c0 = torch.randn(2, B, N).double()
    lstm, gru = torch.nn.LSTM(D, N).double(), torch.nn.GRU(D, N).double()
    u = torch.nn.functional.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    h, state = lstm_sequence(u, lstm.weight_hh_l0, torch.cat([h0, c0], dim=-1), is_init, backend=backend)
    expected, (last_h, last_c) = lstm(x, (h0[None], c0[None]))
    assert_close(h, expected, 1e-13)
    assert_close(state, torch.cat([last_h[0], last_c[0]], dim=-1), 1e-13)
    bias_hn = gru.bias_hh_l0[2 * N :]
    bias = gru.bias_ih_l0 + torch.cat([gru.bias_hh_l0[: 2 * N], torch.zeros(N).double()])
    u = torch.nn.functional.linear(x, gru.weight_ih_l0, bias)
    h, last = gru_sequence(u, gru.weight_hh_l0, bias_hn, h0, is_init, backend=backend)
    expected, final = gru(x, h0[None])
    assert_close(h, expected, 1e-13)
    assert_close(last, final[0], 1e-13)
