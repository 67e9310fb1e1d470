"""The RTRL carry with 2x2 blocks: backends against the reference, against two carries that do not mix, against BPTT."""

from __future__ import annotations

import pytest
import torch

from lifelong.kernels.rtrl import rtrl_advance, rtrl_advance_vector
from lifelong.kernels.rtrl_block import rtrl_block_advance, rtrl_block_advance_vector, rtrl_block_boundary
from tests.kernels.support import BACKENDS, FAST_BACKENDS, assert_close, recurrence

SHAPES = [(1, 1, 1, 1, 1), (1, 5, 2, 16, 64), (4, 9, 3, 17, 70), (7, 19, 3, 70, 33), (3, 2, 1, 64, 300)]


def problem(
    T: int,
    B: int,
    G: int,
    N: int,
    D: int,
    dtype: torch.dtype = torch.float64,
    stored: torch.dtype | None = None,
    parts: int = 2,
) -> tuple[torch.Tensor, ...]:
    """(S, J, l, x), with resets (zeros in J)."""
    generator = torch.Generator().manual_seed(T + 10 * B + 100 * N)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    J = normal(T, B, parts, parts, N).tanh()
    J[torch.rand(T, B, generator=generator) < 0.1] = 0.0
    return normal(B, parts, G, N, D).to(stored or dtype), J, normal(T, B, parts, G, N), normal(T, B, D)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "parts"), [(torch.float32, 2), *((torch.float64, parts) for parts in (2, 3, 4))])
@pytest.mark.usefixtures("poisoned_memory")
def test_advance_equals_the_reference(backend: str, shape: tuple[int, ...], dtype: torch.dtype, parts: int) -> None:
    S, J, l, x = problem(*shape, dtype=dtype, parts=parts)  # noqa: E741
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    s = S[..., 0].contiguous()
    expected = rtrl_block_advance(S.clone(), J, l, x, backend="reference")
    got = rtrl_block_advance(S, J, l, x, backend=backend)
    assert got is S
    assert_close(got, expected, tolerance)
    expected = rtrl_block_advance_vector(s.clone(), J, l, backend="reference")
    assert rtrl_block_advance_vector(s, J, l, backend=backend) is s
    assert_close(s, expected, tolerance)


@pytest.mark.parametrize("parts", [5, 16, 17])
def test_there_may_be_many_parts(parts: int) -> None:
    S, J, l, x = problem(3, 2, 2, 70, 5, parts=parts)  # noqa: E741
    s = S[..., 0].contiguous()
    for op, arguments in ((rtrl_block_advance, (S, J, l, x)), (rtrl_block_advance_vector, (s, J, l))):
        got, expected = (op(arguments[0].clone(), *arguments[1:], backend=name) for name in ("cpu", "reference"))
        assert_close(got, expected, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_without_a_coupling_are_two_diagonal_carries(backend: str) -> None:
    S, J, l, x = problem(6, 4, 3, 5, 7)  # noqa: E741
    J[:, :, 0, 1] = J[:, :, 1, 0] = 0.0
    parts = [rtrl_advance(S[:, i].contiguous(), J[:, :, i, i], l[:, :, i], x, backend="reference")[0] for i in range(2)]
    assert_close(rtrl_block_advance(S, J, l, x, backend=backend), torch.stack(parts, dim=1), 1e-13)
    s = S[..., 0].contiguous()
    parts = [rtrl_advance_vector(s[:, i].contiguous(), J[:, :, i, i], l[:, :, i])[0] for i in range(2)]
    assert_close(rtrl_block_advance_vector(s, J, l, backend=backend), torch.stack(parts, dim=1), 1e-13)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("poisoned_memory")
def test_bf16_storage_accumulates_in_fp32(backend: str, shape: tuple[int, ...]) -> None:
    S, J, l, x = problem(*shape, dtype=torch.float32, stored=torch.bfloat16)  # noqa: E741
    exact = rtrl_block_advance(S.float(), J, l, x, backend="reference")
    got = rtrl_block_advance(S, J, l, x, backend=backend)
    assert got.dtype == torch.bfloat16
    assert (got.float() - exact).abs().le(exact.abs() * 2.0**-8 + 2e-6 * exact.abs().max()).all()  # one rounding


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [None, [3, 0, 3], []])
@pytest.mark.usefixtures("poisoned_memory")
def test_boundary_equals_the_reference(backend: str, stored: torch.dtype, index: list[int] | None) -> None:
    S, _, _, _ = problem(1, 5, 2, 17, 70, dtype=torch.float32, stored=stored)
    rows = None if index is None else torch.tensor(index, dtype=torch.int64)
    boundary = torch.randn(5 if index is None else len(index), 2, 17, generator=torch.Generator().manual_seed(1))
    expected = rtrl_block_boundary(S, boundary, rows, backend="reference")
    assert_close(rtrl_block_boundary(S, boundary, rows, backend=backend), expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", range(1, 6))
def test_two_chunks_are_one(backend: str, split: int) -> None:
    S, J, l, x = problem(6, 3, 2, 5, 7)  # noqa: E741
    whole = rtrl_block_advance(S.clone(), J, l, x, backend=backend)
    parts = rtrl_block_advance(S, J[:split], l[:split], x[:split], backend=backend)
    assert_close(rtrl_block_advance(parts, J[split:], l[split:], x[split:], backend=backend), whole, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_forgets_the_carry(backend: str) -> None:
    S, J, l, x = problem(6, 3, 2, 5, 7)  # noqa: E741
    J[2] = 0.0
    fresh = rtrl_block_advance(torch.zeros_like(S), J[2:], l[2:], x[2:], backend=backend)
    assert_close(rtrl_block_advance(S, J, l, x, backend=backend), fresh, 1e-14)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_a_carry_that_is_a_view_is_advanced_in_place(backend: str) -> None:
    S, J, l, x = problem(4, 3, 2, 5, 7)  # noqa: E741
    expected = rtrl_block_advance(S.clone(), J, l, x, backend="reference")
    view = S.transpose(0, 2).contiguous().transpose(0, 2)
    rtrl_block_advance(view, J, l, x, backend=backend)
    assert_close(view, expected, 1e-13)


def test_compiled_results_do_not_depend_on_the_thread_count() -> None:
    S, J, l, x = problem(8, 37, 2, 70, 65, dtype=torch.float32)  # noqa: E741
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(rtrl_block_advance(S.clone(), J, l, x, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T", [1, 4])
def test_chunked_rtrl_is_bptt_over_the_whole_history(backend: str, T: int) -> None:
    """Three chunks with resets inside and on their borders; truncated BPTT must fail the same comparison."""
    torch.manual_seed(0)
    B, N, D, chunks = 5, 6, 4, 3
    W, bias, v = torch.randn(3 * N, D).double(), torch.randn(3 * N).double(), torch.randn(5, N).double()
    x, e = torch.randn(chunks * T, B, D).double(), torch.randn(chunks * T, B, N).double()
    is_init = torch.rand(chunks * T, B) < 0.15
    is_init[T, 0] = True
    parameters = tuple(parameter.requires_grad_() for parameter in (W, bias, v))

    def run(part: slice, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u = torch.nn.functional.linear(x[part], W, bias)
        (h, _), last = recurrence("diagonal_lstm").sequence(u, v, state, is_init[part], backend=backend)
        return u, h, last

    _, h, _ = run(slice(None), torch.zeros(B, 2 * N).double())
    expected = torch.autograd.grad((h * e).sum(), parameters)

    S = torch.zeros(B, 2, 3, N, D).double()
    small = [torch.zeros(B, 2, count, N).double() for count in (3, 5)]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    truncated = [torch.zeros_like(parameter) for parameter in parameters]
    state = torch.zeros(B, 2 * N).double()
    for k in range(chunks):
        part = slice(k * T, (k + 1) * T)
        start = state.clone().requires_grad_()
        u, h, last = run(part, start)
        *inside, boundary = torch.autograd.grad((h * e[part]).sum(), (*parameters, start))
        boundary = boundary.view(B, 2, N)
        carried = [rtrl_block_boundary(S, boundary, backend=backend).flatten(0, 1)]
        carried += [torch.einsum("bin,bikn->kn", boundary, s).flatten() for s in small]
        before = [state]
        for t in range(k * T, (k + 1) * T):
            before.append(run(slice(t, t + 1), before[-1])[2].detach())
        local = recurrence("diagonal_lstm").local(u, v, torch.stack(before[:-1]), is_init[part], backend=backend)
        J, l, of_v = local  # noqa: E741
        rtrl_block_advance(S, J, l, x[part], backend=backend)
        rtrl_block_advance_vector(small[0], J, l, backend=backend)
        rtrl_block_advance_vector(small[1], J, of_v, backend=backend)
        for i in range(3):
            total[i] += inside[i] + carried[i].view(inside[i].shape)
            truncated[i] += inside[i]
        state = last.detach()
    for i in range(3):
        assert_close(total[i], expected[i], 1e-12)
        assert (truncated[i] - expected[i]).norm() > 1e-2 * expected[i].norm()


def test_wrong_inputs_are_one_sentence() -> None:
    S, J, l, x = problem(2, 3, 2, 5, 6)  # noqa: E741
    with pytest.raises(ValueError, match="rtrl_block_advance: l must have shape"):
        rtrl_block_advance(S, J, l[:, :, :1], x)
    with pytest.raises(ValueError, match="bfloat16 beside float32"):
        rtrl_block_advance(S.float(), J, l, x)
    with pytest.raises(ValueError, match=r"rtrl_block_advance_vector: S must have shape \(B, P, K, N\)"):
        rtrl_block_advance_vector(S, J, l)
    with pytest.raises(ValueError, match=r"rtrl_block_boundary: index must lie in \[0, 3\)"):
        rtrl_block_boundary(S, S[:1, :, 0, :, 0].contiguous(), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"rtrl_block_boundary: boundary must have shape \(3, 2, 5\)"):
        rtrl_block_boundary(S, S[:1, :, 0, :, 0].contiguous())
