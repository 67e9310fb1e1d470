"""The eLSTM, the diagonal GRU and LSTM: every backend against the reference, resets, splitting, local derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from tests.kernels.support import BACKENDS, FAST_BACKENDS, RECURRENCES, assert_close, gradients, recurrence

SHAPES = [(1, 1, 1), (1, 5, 33), (7, 3, 17), (16, 9, 64)]
RESETS = ["none", "some", "all", "first"]


def sequence(
    op: str, u: torch.Tensor, v: torch.Tensor, state: torch.Tensor, is_init: torch.Tensor, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the first part of the state after each step, the last state)."""
    parts, last = recurrence(op).sequence(u, v, state, is_init, backend=backend)
    return parts[0], last


pytestmark = pytest.mark.parametrize("op", RECURRENCES)


def problem(op: str, T: int, B: int, N: int, resets: str = "some", dtype: torch.dtype = torch.float64) -> tuple:
    """(u, v, first state, is_init), the first three requiring gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    is_init = torch.rand(T, B, generator=generator) < {"none": 0.0, "some": 0.25, "all": 2.0, "first": 0.0}[resets]
    if resets == "first":
        is_init[0] = True
    gates, vectors, parts = RECURRENCES[op]
    return normal(T, B, gates * N), normal(vectors, N), normal(B, parts * N), is_init


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_the_reference(
    op: str, backend: str, shape: tuple[int, int, int], resets: str, dtype: torch.dtype
) -> None:
    inputs = problem(op, *shape, resets, dtype)
    got, expected = (sequence(op, *inputs, backend=name) for name in (backend, "reference"))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for a, b in zip((*got, *gradients(got, inputs[:3])), (*expected, *gradients(expected, inputs[:3])), strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(op: str, backend: str) -> None:
    *inputs, is_init = problem(op, 4, 3, 2)
    assert gradcheck(lambda u, v, h: sequence(op, u, v, h, is_init, backend=backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradient_from_one_output_only(op: str, backend: str, which: int) -> None:
    *inputs, is_init = problem(op, 4, 3, 5)
    got = torch.autograd.grad(sequence(op, *inputs, is_init, backend=backend)[which].sum(), inputs)
    expected = torch.autograd.grad(sequence(op, *inputs, is_init, backend="reference")[which].sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", range(1, 6))
def test_splitting_with_carried_state_is_one_run(op: str, backend: str, split: int) -> None:
    u, v, state, is_init = inputs = problem(op, 6, 5, 7)
    whole = sequence(op, *inputs, backend=backend)
    first, middle = sequence(op, u[:split], v, state, is_init[:split], backend=backend)
    second, last = sequence(op, u[split:], v, middle, is_init[split:], backend=backend)
    parts = (torch.cat([first, second]), last)
    for a, b in zip((*parts, *gradients(parts, inputs[:3])), (*whole, *gradients(whole, inputs[:3])), strict=True):
        assert_close(a, b, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_crosses_a_reset(op: str, backend: str) -> None:
    u, v, state, is_init = problem(op, 6, 5, 7, "none")
    is_init[3] = True
    h, _ = sequence(op, u, v, state, is_init, backend=backend)
    du, dstate = torch.autograd.grad(h[3:].sum(), (u, state))
    assert not du[:3].any()
    assert not dstate.any()
    fresh, _ = sequence(op, u[3:], v, torch.zeros_like(state), is_init[:3], backend=backend)
    assert_close(h[3:], fresh, 1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned_memory")
def test_local_is_what_autograd_says(op: str, backend: str) -> None:
    (T, B, N), parts = (4, 3, 5), RECURRENCES[op][2]
    u, v, _, is_init = problem(op, T, B, N)
    before = torch.randn(T, B, parts * N, dtype=torch.float64)
    J, l, k = recurrence(op).local(u, v, before, is_init, backend=backend)  # noqa: E741
    for t in range(T):
        for b in range(B):

            def after(state: torch.Tensor, u: torch.Tensor, v: torch.Tensor, t: int = t, b: int = b) -> torch.Tensor:
                step = sequence(op, u[None, None], v, state[None], is_init[t, None, b, None], backend="reference")
                return step[1][0]

            by_state, by_u, by_v = torch.autograd.functional.jacobian(after, (before[t, b], u[t, b], v))
            for part in range(parts):
                rows = slice(part * N, (part + 1) * N)
                for got, jacobian in ((J, by_state), (l, by_u), (k, by_v)):
                    blocks = jacobian[rows].view(N, -1, N)  # unit, group, unit: diagonal in the units
                    assert_close(torch.diag_embed(got[t, b, part]).transpose(0, 1), blocks, 1e-13)


def test_it_computes_the_published_equations(op: str) -> None:
    u, v, state, is_init = (x.detach().numpy() for x in problem(op, 6, 4, 3))

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    h, c = np.split(state, 2, 1) if op == "diagonal_lstm" else (state, state)
    got, _ = sequence(op, *(torch.tensor(x) for x in (u, v, state)), torch.tensor(is_init))
    for t in range(6):
        keep = ~is_init[t][:, None]
        h, c = h * keep, c * keep
        drives, weights = np.split(u[t], RECURRENCES[op][0], 1), v
        if op == "elstm":
            f = sigmoid(drives[0] + weights[0] * h)
            h = f * h + (1 - f) * np.tanh(drives[1] + weights[1] * h)
        elif op == "diagonal_gru":
            z, r = (sigmoid(drives[i] + weights[i] * h) for i in range(2))
            h = (1 - z) * h + z * np.tanh(drives[2] + weights[2] * (h * r))
        else:
            f = sigmoid(drives[0] + weights[0] * h + weights[3] * c)
            c = f * c + (1 - f) * np.tanh(drives[1] + weights[1] * h)
            h = sigmoid(drives[2] + weights[2] * h + weights[4] * c) * np.tanh(c)
        np.testing.assert_allclose(got[t].numpy(), h, atol=1e-13)


def test_wrong_inputs_are_one_sentence(op: str) -> None:
    u, v, state, is_init = problem(op, 2, 3, 5)
    with pytest.raises(ValueError, match="recurrence: v must have shape"):
        sequence(op, u, v[1:], state, is_init)
    with pytest.raises(ValueError, match=r"u must have shape \(T >= 1, B, [23] \* 5\)"):
        sequence(op, u[..., 1:], v, state, is_init)
