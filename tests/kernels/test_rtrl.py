"""The RTRL carry: every backend against the step-by-step reference, and chunked RTRL against BPTT over everything."""

from __future__ import annotations

import pytest
import torch

from lifelong.kernels.rtrl import rtrl_advance, rtrl_advance_vector, rtrl_boundary
from tests.kernels.support import BACKENDS, FAST_BACKENDS, assert_close, elstm_local, elstm_sequence

SHAPES = [(1, 1, 1, 1, 1), (1, 5, 2, 16, 64), (4, 9, 2, 17, 70), (7, 19, 3, 70, 33), (3, 2, 1, 64, 300)]


def problem(
    T: int, B: int, G: int, N: int, D: int, dtype: torch.dtype = torch.float64, stored: torch.dtype | None = None
) -> tuple[torch.Tensor, ...]:
    """(S, a, l, x, boundary), with resets (zeros in a)."""
    generator = torch.Generator().manual_seed(T + 10 * B + 100 * N)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    a = torch.where(torch.rand(T, B, 1, generator=generator) < 0.1, 0.0, normal(T, B, N).tanh())
    return normal(B, G, N, D).to(stored or dtype), a.to(dtype), normal(T, B, G, N), normal(T, B, D), normal(B, N)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_boundary", [False, True])
@pytest.mark.usefixtures("poisoned_memory")
def test_advance_equals_the_reference(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, with_boundary: bool
) -> None:
    S, a, l, x, boundary = problem(*shape, dtype=dtype)  # noqa: E741
    chosen = boundary if with_boundary else None
    expected, expected_grad = rtrl_advance(S.clone(), a, l, x, boundary_BN=chosen, backend="reference")
    got, grad = rtrl_advance(S, a, l.flatten(2), x, boundary_BN=chosen, backend=backend)
    assert got is S
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert_close(got, expected, tolerance)
    if with_boundary:
        assert_close(grad, expected_grad, tolerance)
    else:
        assert grad is None


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("poisoned_memory")
def test_bf16_storage_accumulates_in_fp32(backend: str, shape: tuple[int, ...]) -> None:
    S, a, l, x, boundary = problem(*shape, dtype=torch.float32, stored=torch.bfloat16)  # noqa: E741
    exact, exact_grad = rtrl_advance(S.float(), a, l, x, boundary_BN=boundary, backend="reference")
    got, grad = rtrl_advance(S, a, l, x, boundary_BN=boundary, backend=backend)
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).abs().le(exact.abs() * 2.0**-8 + 1e-6).all()  # one rounding to nearest
    assert_close(grad, exact_grad, 1e-5)


def test_compiled_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    S = torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16)
    a, l, x = torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1), torch.randn(1, 1, 64)  # noqa: E741
    special = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF], dtype=torch.int32).view(torch.float32)
    x[0, 0, :4] = special
    x[0, 0, 4:7] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for width in (64, 40):  # full and ragged panels
        got, _ = rtrl_advance(S[..., :width].clone(), a, l, x[..., :width].contiguous(), backend="cpu")
        torch.testing.assert_close(got.flatten(), x[0, 0, :width].bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("poisoned_memory")
def test_advance_vector_equals_the_reference(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    S, a, l, _, boundary = problem(*shape, dtype=dtype)  # noqa: E741
    S = S[..., 0].contiguous()
    expected, expected_grad = rtrl_advance_vector(S.clone(), a, l, boundary_BN=boundary, backend="reference")
    got, grad = rtrl_advance_vector(S, a, l.flatten(2), boundary_BN=boundary, backend=backend)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert got is S
    assert_close(got, expected, tolerance)
    assert_close(grad, expected_grad, tolerance)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [None, [3, 0, 3], []])
@pytest.mark.usefixtures("poisoned_memory")
def test_boundary_equals_the_reference(backend: str, stored: torch.dtype, index: list[int] | None) -> None:
    S, _, _, _, boundary = problem(1, 5, 2, 17, 70, dtype=torch.float32, stored=stored)
    rows = None if index is None else torch.tensor(index, dtype=torch.int64)
    boundary = boundary if index is None else boundary[: len(index)]
    expected = rtrl_boundary(S, boundary, rows, backend="reference")
    assert_close(rtrl_boundary(S, boundary, rows, backend=backend), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_leaves_the_old_carry_alone(backend: str) -> None:
    S, a, l, x, _ = problem(4, 3, 2, 5, 6)  # noqa: E741
    before, out = S.clone(), torch.empty_like(S)
    got, _ = rtrl_advance(S, a, l, x, out=out, backend=backend)
    assert got is out
    assert torch.equal(S, before)
    assert_close(out, rtrl_advance(S, a, l, x, backend="reference")[0], 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", range(1, 6))
def test_two_chunks_are_one(backend: str, split: int) -> None:
    S, a, l, x, _ = problem(6, 3, 2, 5, 7)  # noqa: E741
    whole, _ = rtrl_advance(S.clone(), a, l, x, backend=backend)
    parts, _ = rtrl_advance(S, a[:split], l[:split], x[:split], backend=backend)
    parts, _ = rtrl_advance(parts, a[split:], l[split:], x[split:], backend=backend)
    assert_close(parts, whole, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_forgets_the_carry(backend: str) -> None:
    S, a, l, x, _ = problem(6, 3, 2, 5, 7)  # noqa: E741
    a[2] = 0.0
    got, _ = rtrl_advance(S, a, l, x, backend=backend)
    fresh, _ = rtrl_advance(torch.zeros_like(S), a[2:], l[2:], x[2:], backend=backend)
    assert_close(got, fresh, 1e-14)


def test_compiled_results_do_not_depend_on_the_thread_count() -> None:
    S, a, l, x, boundary = problem(8, 37, 2, 70, 65, dtype=torch.float32)  # noqa: E741
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out, grad = rtrl_advance(S.clone(), a, l, x, boundary_BN=boundary, backend="cpu")
            results.append((out, grad, rtrl_boundary(S, boundary, backend="cpu")))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(result, results[0], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T", [1, 4])
def test_chunked_rtrl_is_bptt_over_the_whole_history(backend: str, T: int) -> None:
    """Three chunks with resets inside and on their borders; truncated BPTT must fail the same comparison."""
    torch.manual_seed(0)
    B, N, D, chunks = 5, 6, 4, 3
    W, bias, v = torch.randn(2 * N, D).double(), torch.randn(2 * N).double(), torch.randn(2 * N).double()
    x, e = torch.randn(chunks * T, B, D).double(), torch.randn(chunks * T, B, N).double()
    is_init = torch.rand(chunks * T, B) < 0.15
    is_init[T, 0] = True
    for parameter in (W, bias, v):
        parameter.requires_grad_()

    def run(part: slice, c0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u = torch.nn.functional.linear(x[part], W, bias)
        c, last = elstm_sequence(u, v, c0, is_init[part], backend=backend)
        return u, c, last

    _, c, _ = run(slice(None), torch.zeros(B, N).double())
    expected = torch.autograd.grad((c * e).sum(), (W, bias, v))

    S, s = torch.zeros(B, 2, N, D).double(), torch.zeros(B, 4, N).double()
    total = [torch.zeros_like(parameter) for parameter in (W, bias, v)]
    truncated = [torch.zeros_like(parameter) for parameter in (W, bias, v)]
    state = torch.zeros(B, N).double()
    for k in range(chunks):
        part = slice(k * T, (k + 1) * T)
        c0 = state.clone().requires_grad_()
        u, c, last = run(part, c0)
        *inside, boundary = torch.autograd.grad((c * e[part]).sum(), (W, bias, v, c0))
        c_prev = torch.cat([c0[None], c[:-1]]).detach()
        a, l = elstm_local(u, v, c_prev, is_init[part], backend=backend)  # noqa: E741
        masked = c_prev.masked_fill(is_init[part][..., None], 0.0).repeat(1, 1, 2)
        _, grad_W = rtrl_advance(S, a, l, x[part], boundary_BN=boundary, backend=backend)
        _, grad_s = rtrl_advance_vector(s, a, torch.cat([l, l * masked], dim=-1), boundary_BN=boundary, backend=backend)
        carried = (grad_W.reshape(2 * N, D), grad_s[:2].flatten(), grad_s[2:].flatten())
        for i in range(3):
            total[i] += inside[i] + carried[i]
            truncated[i] += inside[i]
        state = last.detach()
    for i in range(3):
        assert_close(total[i], expected[i], 1e-12)
        assert (truncated[i] - expected[i]).norm() > 1e-2 * expected[i].norm()


def test_wrong_inputs_are_one_sentence() -> None:
    S, a, l, x, boundary = problem(2, 3, 2, 5, 6)  # noqa: E741
    with pytest.raises(ValueError, match="rtrl_advance: x must have shape"):
        rtrl_advance(S, a, l, x[:1])
    with pytest.raises(ValueError, match="bfloat16 beside float32"):
        rtrl_advance(S.float(), a, l, x)
    with pytest.raises(ValueError, match=r"index must lie in \[0, 3\)"):
        rtrl_boundary(S, boundary[:1], torch.tensor([3]))
