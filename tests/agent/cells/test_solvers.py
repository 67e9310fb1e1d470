"""All steps of a sequence at once: the same states and gradients as one after the other, and what it took is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.cells.base import ElementwiseCell
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.kernels import dispatch
from lifelong.kernels.recurrence.solve import BLOCK, LIMIT, Solved, associative_scan
from tests.agent.gradients.chunks import (
    B,
    chunked_gradient,
    history,
    max_relative_error,
    split,
    whole_history_gradient,
)
from tests.agent.support import act_through, make_policy, make_trainer, run

NONLINEAR: list[tuple[str, dict[str, Any]]] = [
    ("elstm", {}),
    ("diagonal_gru", {}),
    ("diagonal_lstm", {}),
    ("brc", {}),
    ("sru", {}),
    ("rtu", {"form": "nonlinear"}),
]
LINEAR = ["min_gru", "min_lstm", "lru", "hgrn", "qrnn", "delta", "warp"]
ALL = [*NONLINEAR, *((kind, {}) for kind in LINEAR)]


def make(kind: str, solver: str, dtype: torch.dtype, size: int = 6, **options: Any) -> Any:
    torch.manual_seed(0)
    return registry.build("cell", {"kind": kind, "size": size, "solver": solver, **options}, 5).to(dtype)


def data(cell: ElementwiseCell, T: int, dtype: torch.dtype, resets: float = 0.01) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x, state = torch.randn(T, 3, 5, generator=g), torch.randn(3, cell.state_size, generator=g)
    is_init = torch.rand(T, 3, generator=g) < resets
    is_init[T // 2, 0], is_init[0, 1] = True, True
    return x.to(dtype).requires_grad_(), state.to(dtype).requires_grad_(), is_init


def found(cell: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Outputs, last state, and the gradients of a function of both to everything."""
    y, last = cell.sequence(*inputs)
    wanted = [*inputs[:2], *cell.parameters()]
    grads = torch.autograd.grad(y.square().sum() + last.sum(), wanted, allow_unused=True, materialize_grads=True)
    return [y.detach(), last.detach(), *grads]


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest over what was found of max |difference| / max |value|."""
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-12)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("T", [2, 7, 256, 1024])
@pytest.mark.parametrize(("kind", "options"), ALL, ids=[kind for kind, _ in ALL])
def test_newton_gives_the_states_and_gradients_of_the_loop(kind: str, options: dict[str, Any], T: int) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        loop, newton = (make(kind, solver, dtype, **options) for solver in ("loop", "newton"))
        inputs = data(loop, T, dtype)
        assert difference(found(newton, inputs), found(loop, inputs)) <= tolerance
        assert not newton.solver.failed and 1 <= newton.solver.iterations <= 12
        if kind in LINEAR:  # the first is the solution, the second sees it
            assert newton.solver.iterations <= 2


@pytest.mark.parametrize("solver", ["jacobi", "gauss_seidel"])
@pytest.mark.parametrize("kind", ["elstm", "diagonal_gru", "diagonal_lstm", "hgrn"])
def test_jacobi_and_gauss_seidel_give_the_states_of_the_loop_bit_for_bit(solver: str, kind: str) -> None:
    for T in (2, LIMIT["jacobi"], 5 * BLOCK + 3):
        loop, solved = (make(kind, each, torch.float32) for each in ("loop", solver))
        inputs = data(loop, T, torch.float32, resets=0.1)  # so often that no history is longer than the limit
        inputs[2][::50] = True
        with torch.no_grad():
            assert torch.equal(solved.scan(solved.drive(inputs[0]), *inputs[1:]), loop.states(*inputs))
        assert not solved.solver.failed and 0 < solved.solver.iterations <= (BLOCK if solver != "jacobi" else T)
        assert difference(found(solved, inputs), found(loop, inputs)) <= 1e-5


def test_jacobi_needs_as_many_iterations_as_the_longest_history_has_steps() -> None:
    cell = make("diagonal_gru", "jacobi", torch.float64)
    x, state, is_init = data(cell, 60, torch.float64)
    is_init[::5] = True
    cell.sequence(x, state, is_init)
    assert cell.solver.iterations <= 5


@pytest.mark.parametrize("solver", ["newton", "jacobi"])
def test_what_does_not_converge_is_done_by_the_loop(solver: str) -> None:
    loop, solved = (make("diagonal_gru", each, torch.float32) for each in ("loop", solver))
    for cell in (loop, solved):
        with torch.no_grad():
            cell.weight_recurrent.copy_(torch.linspace(-9, 9, cell.weight_recurrent.numel()).view(3, -1))
    inputs = data(loop, 300, torch.float32)
    assert difference(found(solved, inputs), found(loop, inputs)) == 0.0
    assert solved.solver.failed
    inputs = data(loop, 2, torch.float32)
    assert difference(found(solved, inputs), found(loop, inputs)) <= 1e-5
    assert not solved.solver.failed


def test_numbers_that_are_not_finite_are_left_to_the_loop() -> None:
    loop, newton = (make("diagonal_gru", each, torch.float32) for each in ("loop", "newton"))
    x, state, is_init = (each.detach().clone() for each in data(loop, 20, torch.float32))
    x[3, 0] = float("nan")
    for a, b in zip(loop.sequence(x, state, is_init), newton.sequence(x, state, is_init), strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    assert newton.solver.failed


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("T", [1, 2, 3, 8, 21])
def test_the_associative_scan_is_the_linear_recurrence(T: int, parts: int) -> None:
    g = torch.Generator().manual_seed(0)
    J = torch.randn(T, 4, parts, parts, 5, generator=g, dtype=torch.float64) * 0.5
    b = torch.randn(T, 4, parts, 5, generator=g, dtype=torch.float64)
    h = torch.zeros_like(b[0])
    for t, got in enumerate(associative_scan(J, b)):
        h = torch.einsum("bijn,bjn->bin", J[t], h) + b[t]
        torch.testing.assert_close(got, h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_solver_works_on_the_other_backends_and_the_function_itself_has_none(backend: str) -> None:
    loop, newton = (make("diagonal_lstm", each, torch.float64) for each in ("loop", "newton"))
    inputs = data(loop, 40, torch.float64)
    expected = found(loop, inputs)
    with dispatch.force(backend):
        assert difference(found(newton, inputs), expected) <= 1e-12
    assert (newton.solver.iterations > 0) == (backend == "torch")


@pytest.mark.parametrize(("kind", "options"), NONLINEAR[:3], ids=[kind for kind, _ in NONLINEAR[:3]])
@pytest.mark.parametrize("solver", ["newton", "gauss_seidel"])
def test_rtrl_over_solved_chunks_is_the_gradient_of_the_whole_history(
    kind: str, options: dict[str, Any], solver: str
) -> None:
    loop, solved = (
        make_policy({"kind": kind, "solver": each, **options}, 7, observation=4).double() for each in ("loop", solver)
    )
    data = history(loop, 7, 3)
    expected = whole_history_gradient(loop, data, split(loop, data, 7))
    parts = split(solved, data, 7)
    got = chunked_gradient(solved, parts, RTRL(solved.cell, B))  # type: ignore[arg-type]
    assert max_relative_error(got, expected, list(expected)) <= 1e-10
    assert solved.cell.solver is not None and solved.cell.solver.iterations > 0
    assert torch.equal(act_through(loop, data)[0].state_TBS, act_through(solved, data)[0].state_TBS)


def test_a_run_logs_what_the_solver_took(tmp_path: Path) -> None:
    cell = {"kind": "stack", "size": 5, "layers": ["min_gru", {"kind": "diagonal_gru", "solver": "newton"}]}
    seen = run(make_trainer(tmp_path, policy={"cell": cell})).seen
    assert 1 <= seen["gradient/solver_iterations"] <= LIMIT["newton"] and seen["gradient/solver_failed"] == 0


def test_a_cell_without_a_compiled_recurrence_has_no_solver() -> None:
    with pytest.raises(ConfigError, match="solver"):
        registry.build("cell", {"kind": "gru", "solver": "newton"}, 5)
    with pytest.raises(ConfigError, match="solver is 'newon'"):
        registry.build("cell", {"kind": "elstm", "solver": "newon"}, 5)


def test_no_graph_is_captured_of_what_asks_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDevice(Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cell = make("elstm", "newton", torch.float32)
    x, state, is_init = data(cell, 4, torch.float32)
    impl = Solved(cell.compiled_recurrence().implementation("cpu", x), cell.solver)
    u = cell.drive(x).detach().as_subclass(OnDevice)
    with pytest.raises(RuntimeError, match="no CUDA graph"):
        impl.forward(u, cell.weight_recurrent, state, is_init)
