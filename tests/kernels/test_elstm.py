"""The eLSTM core: every backend against the reference, resets, splitting, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from lifelong.kernels.elstm import elstm_layer
from tests.kernels.support import BACKENDS, FAST_BACKENDS, assert_close, elstm_sequence, gradients, recurrence

SHAPES = [(1, 1, 1), (1, 5, 33), (7, 3, 17), (16, 9, 64), (33, 6, 100)]
RESETS = ["none", "some", "all", "first"]


def problem(T: int, B: int, N: int, resets: str = "some", dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple:
    """(u, v, c0, is_init), the first three requiring gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    is_init = torch.rand(T, B, generator=generator) < {"none": 0.0, "some": 0.25, "all": 2.0, "first": 0.0}[resets]
    if resets == "first":
        is_init[0] = True
    return normal(T, B, 2 * N), normal(2 * N), normal(B, N), is_init


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_the_reference(backend: str, shape: tuple[int, int, int], resets: str, dtype: torch.dtype) -> None:
    inputs = problem(*shape, resets, dtype)
    got, expected = (elstm_sequence(*inputs, backend=name) for name in (backend, "reference"))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for a, b in zip((*got, *gradients(got, inputs[:3])), (*expected, *gradients(expected, inputs[:3])), strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("resets", RESETS)
def test_gradcheck(backend: str, resets: str) -> None:
    *inputs, is_init = problem(4, 3, 2, resets)
    assert gradcheck(lambda u, v, c: elstm_sequence(u, v, c, is_init, backend=backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", range(1, 6))
def test_splitting_with_carried_state_is_one_run(backend: str, split: int) -> None:
    u, v, c0, is_init = inputs = problem(6, 5, 7)
    whole = elstm_sequence(*inputs, backend=backend)
    first, middle = elstm_sequence(u[:split], v, c0, is_init[:split], backend=backend)
    second, last = elstm_sequence(u[split:], v, middle, is_init[split:], backend=backend)
    parts = (torch.cat([first, second]), last)
    for a, b in zip((*parts, *gradients(parts, inputs[:3])), (*whole, *gradients(whole, inputs[:3])), strict=True):
        assert_close(a, b, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_starts_a_separate_sequence(backend: str) -> None:
    u, v, c0, _ = problem(6, 5, 7)
    is_init = torch.zeros(6, 5, dtype=torch.bool)
    is_init[3] = True
    c, _ = elstm_sequence(u, v, c0, is_init, backend=backend)
    fresh, _ = elstm_sequence(u[3:], v, torch.zeros_like(c0), is_init[3:] & False, backend=backend)
    assert torch.equal(c[3:], fresh)
    earlier = torch.autograd.grad(c[3:].sum(), (u, c0))
    assert not earlier[0][:3].any()
    assert earlier[0][3:].all()
    assert not earlier[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_clears_a_state_that_is_not_finite(backend: str) -> None:
    u, v, c0, is_init = problem(3, 4, 5, "first")
    with torch.no_grad():
        c0[2] = torch.nan
    c, _ = elstm_sequence(u, v, c0, is_init, backend=backend)
    assert c.isfinite().all()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_saturated_and_invalid_drives(backend: str) -> None:
    values = torch.tensor([0.0, -0.0, 1e-8, 0.624, 0.626, 20.0, 88.0, 300.0, torch.inf])
    values = torch.cat([values, -values])
    u = torch.cartesian_prod(values, values).T.reshape(1, 1, -1)
    n = u.shape[-1] // 2
    inputs = (u, torch.zeros(2 * n), torch.ones(1, n), torch.zeros(1, 1, dtype=torch.bool))
    assert_close(elstm_sequence(*inputs, backend=backend)[0], elstm_sequence(*inputs, backend="reference")[0], 1e-6)
    u[..., 3] = torch.nan
    u[..., n + 5] = torch.nan
    c = elstm_sequence(*inputs, backend=backend)[0]
    assert c.isnan().sum() == 2
    assert c[0, 0, [3, 5]].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_are_independent(backend: str) -> None:
    u, v, c0, is_init = problem(6, 11, 7)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    c, last = elstm_sequence(u, v, c0, is_init, backend=backend)
    permuted, permuted_last = elstm_sequence(u[:, order], v, c0[order], is_init[:, order], backend=backend)
    assert_close(permuted, c[:, order], 1e-15)
    assert_close(permuted_last, last[order], 1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradient_from_one_output_only(backend: str, which: int) -> None:
    inputs = problem(4, 3, 5)
    got = torch.autograd.grad(elstm_sequence(*inputs, backend=backend)[which].sum(), inputs[:3])
    expected = torch.autograd.grad(elstm_sequence(*inputs, backend="reference")[which].sum(), inputs[:3])
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 1e-13)


def layer_problem(T: int, B: int, N: int, D: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(x, weight, bias, v, weight_out, recurrent_out, bias_out, c0) requiring gradients, and is_init."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(T, B, D), (2 * N, D), (2 * N,), (2 * N,), (N, D), (N, N), (N,), (B, N)]
    inputs = [torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in inputs], torch.rand(T, B, generator=generator) < 0.25


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 17, 6), (9, 8, 33, 20), (4, 37, 130, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", [[0], [1], [2], [0, 1, 2]])
@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.usefixtures("poisoned_memory")
def test_layer_equals_the_reference(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, outputs: list[int], with_known: bool
) -> None:
    inputs, is_init = layer_problem(*shape, dtype)
    results = []
    for name in (backend, "reference"):
        known = None
        if with_known and name == backend:
            x, *weights, c0 = (tensor.detach() for tensor in inputs)
            c = elstm_layer(x, *weights, c0, is_init, backend="reference")[2]
            known = c, torch.sigmoid(x @ weights[3].T + c @ weights[4].T + weights[5])
        result = elstm_layer(*inputs, is_init, known=known, backend=name)
        used = gradients(tuple(result[i] for i in outputs), tuple(inputs), allow_unused=True)
        drive = result[3] if result[3] is not None else inputs[0].detach() @ inputs[1].detach().T + inputs[2].detach()
        results.append((*result[:3], drive, *(torch.zeros(1) if g is None or not g.any() else g for g in used)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("D", [3, 17])  # 17: wider than the kernel for narrow inputs
def test_layer_gradcheck(backend: str, D: int) -> None:
    inputs, is_init = layer_problem(3, 2, 2, D, torch.float64)
    assert gradcheck(lambda *tensors: elstm_layer(*tensors, is_init, backend=backend)[:3], inputs)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_boundary", [False, True])
@pytest.mark.parametrize("shape", [(6, 9, 17, 5), (1, 3, 64, 1), (5, 33, 130, 16), (4, 5, 9, 17), (3, 4, 70, 70)])
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.usefixtures("poisoned_memory")
def test_advance_equals_the_reference(
    backend: str, dtype: torch.dtype, with_boundary: bool, shape: tuple[int, int, int, int], resets: str
) -> None:
    for stored in (dtype, torch.bfloat16) if dtype == torch.float32 else (dtype,):
        results = []
        for name in (backend, "reference"):
            inputs, boundary, S, s = advance_problem(*shape, resets, dtype)
            carry, options = S.to(stored), {"boundary_BS": boundary if with_boundary else None, "backend": name}
            results.append((carry, s, *advance(carry, s, *inputs, **options)))
        for a, b in zip(*results, strict=True):
            if b is None:
                assert a is None
                continue
            rounding = 5e-3 if a.dtype == torch.bfloat16 else 0.0
            assert_close(a.to(dtype), b.to(dtype), max(rounding, 1e-5 if dtype == torch.float32 else 1e-13))


def advance(S: torch.Tensor, s: torch.Tensor, *inputs: torch.Tensor, **options: Any) -> tuple:
    """The carry [B, 2, N, D] and [B, 4, N] of the eLSTM, moved by its recurrence."""
    x, weight, bias, v, state, is_init = inputs
    inputs = (x, weight, bias, v.view(2, -1), state, is_init)
    return recurrence("elstm").advance(S.unsqueeze(1), s.unsqueeze(1), *inputs, **options)


def advance_problem(T: int, B: int, N: int, D: int, resets: str, dtype: torch.dtype) -> tuple:
    """((x, weight, bias, v, states before each step, is_init), boundary, S, s), the states those of a real run."""
    torch.manual_seed(0)
    shapes = ((T, B, D), (2 * N, D), (2 * N,), (2 * N,), (B, N), (B, N), (B, 2, N, D), (B, 4, N))
    x, weight, bias, v, c0, boundary, S, s = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)
    is_init = problem(T, B, N, resets, dtype)[3]
    u = torch.nn.functional.linear(x, weight, bias)
    c, _ = elstm_sequence(u, v, c0, is_init, backend="reference")
    return (x, weight, bias, v, torch.cat([c0[None], c[:-1]]), is_init), boundary, S, s


def test_advance_takes_views_and_refuses_wrong_shapes() -> None:
    inputs, boundary, S, s = advance_problem(4, 3, 5, 2, "some", torch.float32)
    views = tuple(t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 1 else t for t in inputs)
    carry = torch.empty(3, 2, 2, 5).transpose(2, 3).copy_(S)
    expected, expected_s = S.clone(), s.clone()
    grads = advance(carry, s.clone(), *views, boundary_BS=boundary)
    wanted = advance(expected, expected_s, *inputs, boundary_BS=boundary)
    for a, b in zip((carry, *grads), (expected, *wanted), strict=True):
        assert_close(a, b, 1e-6)
    with pytest.raises(ValueError, match="state must have shape"):
        advance(S, s, *inputs[:4], inputs[4][1:], inputs[5])
    with pytest.raises(ValueError, match="S must have shape"):
        advance(S[:, :1], s, *inputs)


def test_non_contiguous_inputs() -> None:
    u, v, c0, is_init = problem(4, 3, 5, dtype=torch.float32)
    expected = elstm_sequence(u, v, c0, is_init, backend="reference")
    strided = (u.transpose(0, 1).contiguous().transpose(0, 1), v.repeat_interleave(2)[::2], c0.T.contiguous().T)
    got = elstm_sequence(*strided, is_init.T.contiguous().T, backend="cpu")
    for a, b in zip((*got, *gradients(got, (u, v, c0))), (*expected, *gradients(expected, (u, v, c0))), strict=True):
        assert_close(a, b, 1e-5)


def test_compiled_results_do_not_depend_on_the_thread_count() -> None:
    inputs = problem(20, 37, 64, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            c, last = elstm_sequence(*inputs, backend="cpu")
            results.append((c, *gradients((c, last), inputs[:3])))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
