"""The recurrence compiler: random recurrences, those that it refuses, and what is made of one that fails its check."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lifelong.kernels import build, dispatch, elstm
from lifelong.kernels.compiler import operations
from lifelong.kernels.compiler.trace import FUNCTIONS as FUNCTION_NAMES
from lifelong.kernels.recurrence import Recurrence, reference
from lifelong.kernels.recurrence.cpu import compile_all
from lifelong.kernels.recurrence.program import traced
from lifelong.kernels.recurrence.source import Layout, rows
from lifelong.kernels.recurrence.torch_backend import InTorch
from tests.kernels.support import assert_close, gradients

#: element-wise functions of one, two and three tensors that keep the numbers within a few units
ONE: list[Callable[[Tensor], Tensor]] = [
    torch.sigmoid,
    torch.tanh,
    lambda x: torch.exp(-x * x),
    lambda x: torch.log(1.5 + x.abs()),
    lambda x: torch.log1p(x.square()),
    lambda x: torch.expm1(torch.tanh(x)),
    F.softplus,
    lambda x: F.softplus(x, beta=2.0, threshold=1.0),
    lambda x: torch.sqrt(x * x + 0.3),
    lambda x: (x.abs() + 0.4) ** 1.7,
    lambda x: 0.1 * x**3,
    lambda x: (1 + x**2) ** -1,
    F.relu,
    lambda x: torch.clamp(x, -0.7, 0.9),
    lambda x: x.clamp(min=0.1),
    torch.sin,
    lambda x: torch.cos(3 * x),
    lambda x: -x,
    lambda x: 1 - x,
    lambda x: F.leaky_relu(x, 0.2),
    F.elu,
    F.silu,
    F.softsign,
    F.logsigmoid,
    lambda x: x.detach() * 0.5 + x,
    lambda x: torch.where((x > 0) & ~(x > 1), x, 0.5 * torch.sign(x)),
    lambda x: (x >= 0.2).to(x.dtype) * x,
]
TWO: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: 0.7 * (x + y),
    lambda x, y: x - y,
    lambda x, y: 0.6 * x * y,
    lambda x, y: x / (1 + y * y),
    torch.maximum,
    torch.minimum,
    lambda x, y: (0.5 + x.abs()) ** torch.tanh(y),
    lambda x, y: torch.where(x < y, torch.tanh(x), 2 * y),
    lambda x, y: torch.addcmul(x, x, y, value=0.3),
    lambda x, y: torch.rsqrt(1 + x * x) * y,
]
THREE: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda x, y, z: torch.lerp(x, y, torch.sigmoid(z)),
    lambda x, y, z: torch.sigmoid(x) * y + (1 - torch.sigmoid(x)) * z,
    lambda x, y, z: torch.where(x <= 0.1, y, z),
]
FUNCTIONS: list[tuple[int, Callable[..., Tensor]]] = [
    *((1, f) for f in ONE),
    *((2, f) for f in TWO),
    *((3, f) for f in THREE),
]


class Random:
    """A recurrence whose operations and their arguments are drawn."""

    def __init__(self, gates: int, vectors: int, parts: int, lines: list[tuple[int, tuple[int, ...]]]) -> None:
        self.gates, self.vectors, self.parts, self.lines = gates, vectors, parts, lines

    def __call__(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], *parts: Tensor) -> tuple[Tensor, ...]:
        known = [*drives, *vectors, *parts]
        for function, arguments in self.lines:
            arity, apply = FUNCTIONS[function]
            known.append(apply(*[known[argument % len(known)] for argument in arguments[:arity]]))
        # the parts are bounded, so that five steps of it are no chaos; the last of them is the sum of all drives
        after = [torch.tanh(known[-1 - i]) for i in range(self.parts - 1)]
        return (*after, torch.tanh(sum(drives) + known[-self.parts] * parts[-1]))

    def __repr__(self) -> str:
        return f"Random({self.gates}, {self.vectors}, {self.parts}, {self.lines})"


@st.composite
def recurrences(draw: Any) -> Random:
    line = st.tuples(st.integers(0, len(FUNCTIONS) - 1), st.tuples(*[st.integers(0, 40)] * 3))
    gates, vectors, parts = draw(st.integers(1, 4)), draw(st.integers(0, 4)), draw(st.integers(1, 4))
    return Random(gates, vectors, parts, draw(st.lists(line, min_size=parts, max_size=14)))


def values(implementation: Any, function: Random, dtype: torch.dtype) -> list[Tensor]:
    """Forward, backward and local derivatives by an implementation, None being the function itself."""
    T, B, N, (G, K, P) = 3, 5, 19, (function.gates, function.vectors, function.parts)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = normal(T, B, G * N), normal(K, N), normal(B, P * N)
    before, e, last = normal(T, B, P * N), normal(P, T, B, N), normal(B, P * N)
    is_init = torch.rand(T, B, generator=generator) < 0.3
    if implementation is not None:
        after, kept = implementation.forward(*inputs, is_init, keep=True)
        again, _ = implementation.forward(*inputs, is_init)
        assert torch.equal(after, again)
        grads = implementation.backward(*inputs, is_init, after, kept, e.unbind(0), last)
        return [after, *grads, *implementation.local(*inputs[:2], before, is_init)]

    def step(drives: Any, weights: Any, parts: Any) -> tuple[Tensor, ...]:
        return function(drives, weights, *parts)

    leaves = [each.requires_grad_() for each in inputs]
    parts, final = reference.sequence(step, *leaves, is_init)
    total = (torch.stack(parts) * e).sum() + (final * last).sum()
    found = torch.autograd.grad(total, leaves, materialize_grads=True)
    return [torch.stack(parts).detach(), *found, *reference.local(step, *leaves[:2], before, is_init)]


@pytest.mark.parametrize("batches", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_random_recurrences_are_what_eager_torch_makes_of_them(batches: int) -> None:
    """In values, backward and local derivatives; compiled 20 at a time, without gcc's optimisation."""
    drawn = given(st.lists(recurrences(), min_size=20, max_size=20))
    few = settings(
        max_examples=batches,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    few(drawn(compare_with_eager_torch))()


def compare_with_eager_torch(functions: list[Random]) -> None:
    programs = {f"r{i}": traced(f, None, f.gates, f.vectors, f.parts) for i, f in enumerate(functions)}
    flags = tuple(flag for flag in build.FLAGS if flag not in ("-O2", "-ftree-vectorize", "-fopenmp"))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        compiled = compile_all(programs, dtype, flags=flags, loops=["sequence.c"])
        for function, program, found in zip(functions, programs.values(), compiled.values(), strict=True):
            expected = values(None, function, dtype)
            for implementation in (found, *([InTorch(program)] if dtype == torch.float64 else [])):
                for got, wanted in zip(values(implementation, function, dtype), expected, strict=True):
                    assert_close(got, wanted, tolerance)


class Cell(nn.Module):
    """A module with a recurrence of three gates, two parts, a hoisted decay and a number of its own."""

    def __init__(self, units: int = 7) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(-1, 1, units))
        self.register_buffer("scale", torch.tensor(0.7))
        self.half = 0.5

    def decay(self, x: Tensor) -> Tensor:
        return torch.exp(-torch.exp(self.rate)) * x

    def recurrence(self, drives: Any, vectors: Any, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.sigmoid(drives[0] + vectors[0] * h)
        c = self.decay(c) + self.scale * g * torch.tanh(drives[1] + vectors[1] * h)
        return torch.tanh(c) * torch.sigmoid(drives[2]) + self.half * h, c


def problem(dtype: torch.dtype = torch.float64, T: int = 6, B: int = 5, N: int = 7, P: int = 2) -> list[Tensor]:
    """(u_TBM, v_KN, state_BS, is_init_TB)."""
    g = torch.Generator().manual_seed(0)
    shapes = ((T, B, 3 * N), (2, N), (B, P * N))
    tensors = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return [*tensors, torch.rand(T, B, generator=g) < 0.3]


def recurrence(module: nn.Module, method: Any = None, parts: int = 2) -> Recurrence:
    return Recurrence(method or type(module).recurrence, 3, 2, parts, module, 7)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("poisoned_memory")
def test_parameters_and_buffers_that_the_recurrence_reads_get_their_gradients(backend: str, dtype: torch.dtype) -> None:
    cell, inputs = Cell().to(dtype), problem(dtype)
    compiled, found = recurrence(cell), []
    assert compiled.program is not None and compiled.program.extra == ("rate", "scale")
    for name in (backend, "reference"):
        parts, last = compiled.sequence(*inputs, backend=name)
        outputs = (*parts, last)
        found.append((*outputs, *gradients(outputs, (*inputs[:3], cell.rate))))
    for got, expected in zip(*found, strict=True):
        assert_close(got, expected, 1e-5 if dtype == torch.float32 else 1e-12)


def test_a_changed_parameter_is_seen_and_a_copy_reads_its_own() -> None:
    cell, inputs = Cell().double(), problem()
    compiled = recurrence(cell)
    before = compiled.sequence(*inputs)[1]
    with torch.no_grad():
        cell.rate += 1.0
    assert_close(compiled.sequence(*inputs)[1], compiled.sequence(*inputs, backend="reference")[1], 1e-12)
    assert not torch.allclose(before, compiled.sequence(*inputs)[1])


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_gradients_from_each_output_alone(backend: str) -> None:
    cell, inputs = Cell().double(), problem()
    compiled = recurrence(cell)
    for which in range(3):
        found = []
        for name in (backend, "reference"):
            parts, last = compiled.sequence(*inputs, backend=name)
            found.append(gradients(((*parts, last)[which],), tuple(inputs[:3])))
        for got, expected in zip(*found, strict=True):
            assert_close(got, expected, 1e-12)


def test_what_depends_on_weights_alone_is_computed_once_before_the_steps() -> None:
    program = recurrence(Cell()).program
    assert program is not None
    text = "\n".join(rows(Layout(program, single=True)))
    hoist, forward = text.split("SHARED ")[1:3]
    assert hoist.count("EXP(") >= 2 and "EXP(" not in forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_compiled_code_can_step_by_address(dtype: torch.dtype) -> None:
    """In pieces of the copies, with resets, after a parameter that the function reads has changed."""
    cell, (u, v, state, is_init) = Cell().to(dtype), problem(dtype)
    compiled, (N, sizes, pointers) = recurrence(cell), (7, [ctypes.c_int64] * 2, [ctypes.c_void_p] * 7)
    acting = compiled.acting(u)
    assert acting is not None and acting.hoisted > 0
    prepare = ctypes.CFUNCTYPE(None, *sizes[:1], *pointers[:2])(acting.prepare)
    act = ctypes.CFUNCTYPE(None, *sizes, *pointers)(acting.act)
    w, zeros = torch.full((acting.hoisted, N), float("nan"), dtype=dtype), torch.zeros(N, dtype=dtype)
    for _ in range(2):
        (h, c), _ = compiled.sequence(u, v, state, is_init, backend="reference")
        weights, before = compiled.weights(v).contiguous(), state.detach()
        prepare(N, weights.data_ptr(), w.data_ptr())
        for t in range(len(u)):
            after = torch.full_like(before, float("nan"))
            for some in (slice(0, 2), slice(2, None)):
                given = (u[t, some], weights, w, before[some], is_init[t, some], zeros, after[some])
                act(len(given[0]), N, *[each.data_ptr() for each in given])
            assert_close(after, torch.cat([h[t], c[t]], -1), 1e-6 if dtype == torch.float32 else 1e-14)
            before = after
        with torch.no_grad():
            cell.rate += 0.5


def test_what_is_not_compiled_has_no_step_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifelong.kernels.recurrence._said", set())
    u = problem()[0]
    assert recurrence(Strange().double(), Strange.unknown).acting(u) is None
    with dispatch.force("torch"):
        assert recurrence(Cell().double()).acting(u) is None


class Strange(Cell):
    def unknown(self, drives: Any, vectors: Any, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return torch.erf(h), c * torch.sigmoid(drives[0])

    def couples(self, drives: Any, vectors: Any, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return h - h.mean(), c

    def branches(self, drives: Any, vectors: Any, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if (h > 0).all():
            return h, c
        return c, h

    def writes_into_a_tensor(self, drives: Any, vectors: Any, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return h, torch.tanh(c, out=c)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Strange.unknown, "torch.erf"),
        (Strange.couples, "Tensor.mean"),
        (Strange.writes_into_a_tensor, "torch.tanh in a"),
    ],
)
def test_an_operation_it_does_not_know_runs_in_torch_after_one_line_that_names_it(
    method: Any, words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifelong.kernels.recurrence._said", set())
    inputs = problem()
    for _ in range(2):
        compiled = recurrence(Strange().double(), method)
        assert compiled.program is None
    assert len(caplog.messages) == 1
    assert "the recurrence of Strange runs step by step in torch" in caplog.text and words in caplog.text
    if method is Strange.unknown:
        parts, last = compiled.sequence(*inputs)
        assert_close(parts[0][0], torch.erf(inputs[2][:, :7].masked_fill(inputs[3][0, :, None], 0.0)), 1e-15)
        gradients((*parts, last), tuple(inputs[:3]), allow_unused=True)


def test_python_control_flow_on_data_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"depends on the data.*test_recurrence.py, line \d+.*torch.where"):
        recurrence(Strange(), Strange.branches)


@pytest.mark.parametrize("what", ["value", "derivative"])
def test_compiled_code_that_differs_is_not_kept_and_not_used(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifelong.kernels.recurrence._said", set())
    monkeypatch.setattr("lifelong.kernels.recurrence.program._programs", {})
    kept: list[str] = []
    monkeypatch.setattr("lifelong.kernels.cache.load", lambda name: None)
    monkeypatch.setattr("lifelong.kernels.cache.keep", lambda name, built: kept.append(name))
    tanh = operations.OPERATIONS["tanh"]
    wrong = {"value": tanh._replace(c="(TANH({0}) * (real)1.001)"), "derivative": tanh._replace(derivative=None)}[what]
    monkeypatch.setitem(operations.OPERATIONS, "tanh", wrong)
    cell, inputs = Cell().double(), problem()
    compiled = recurrence(cell)
    got = compiled.sequence(*inputs, backend="cpu")[1]
    assert_close(got, compiled.sequence(*inputs, backend="reference")[1], 1e-15)
    assert not kept
    assert len(caplog.messages) == 1 and "off by" in caplog.text


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("D", [3, 40])
@pytest.mark.usefixtures("poisoned_memory")
def test_the_carry_is_what_stepping_it_gives(parts: int, D: int) -> None:
    """Fused with the drives (D = 3) and not (D = 40), with resets inside and at the first step."""
    T, B, N, G, K = 5, 9, 70, 2, 2
    g = torch.Generator().manual_seed(0)

    def method(drives: Any, vectors: Any, *p: Tensor) -> tuple[Tensor, ...]:
        f = torch.sigmoid(drives[0] + vectors[0] * p[-1])
        first = f * p[0] + (1 - f) * torch.tanh(drives[1] + vectors[1] * p[0])
        return (first, *[torch.tanh(each + first) * f for each in p[1:]])

    compiled = Recurrence(method, G, K, parts)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, weight, bias, v = normal(T, B, D), normal(G * N, D), normal(G * N), normal(K, N)
    S, s, state = normal(B, parts, G, N, D), normal(B, parts, G + K, N), normal(T, B, parts * N)
    edge, is_init = normal(B, parts * N), torch.rand(T, B, generator=g) < 0.3
    is_init[0, 0] = True
    u = x @ weight.T + bias
    J, l, k = reference.local(compiled.step, u, v, state, is_init)  # noqa: E741
    edges = edge.unflatten(-1, (parts, N))
    grads = (torch.einsum("bpn,bpgnd->gnd", edges, S), torch.einsum("bpn,bpmn->mn", edges, s))
    S_true, s_true = S, s
    for t in range(T):
        S_true = torch.einsum("bijn,bjgnd->bignd", J[t], S_true) + torch.einsum("bign,bd->bignd", l[t], x[t])
        s_true = torch.einsum("bijn,bjmn->bimn", J[t], s_true) + torch.cat([l[t], k[t]], 2)
    for backend in ("reference", "torch", "cpu"):
        mine = (S.clone(), s.clone())
        added = compiled.advance(*mine, x, weight, bias, v, state, is_init, boundary_BS=edge, backend=backend)
        for got, expected in zip((*mine, *added), (S_true, s_true, *grads, J.abs().max()), strict=True):
            assert_close(got, expected, 1e-12)
        again = (S.clone(), s.clone())
        assert compiled.advance(*again, x, weight, bias, v, state, is_init, backend=backend)[:2] == (None, None)
        assert torch.equal(again[0], mine[0]) and torch.equal(again[1], mine[1])


def test_the_page_on_the_compiler_shows_what_it_writes_and_has_every_operation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compiler.md").read_text()
    text = "\n".join(rows(Layout(traced(elstm.recurrence, None, 2, 2, 1), single=True))[1:3])
    assert page.partition("```c\n")[2].partition("```")[0].strip() == text.replace("RECURRENCE_", "recurrence_")
    table = page.partition("| group | operations |")[2].partition("\n\n")[0]
    missing = [name for name in ("sigmoid", *FUNCTION_NAMES) if f"`{name}`" not in table and name not in SYNONYMS]
    assert not missing


#: other names of what the page has, operators, and what says nothing to a reader
SYNONYMS = {
    *(
        "add",
        "sub",
        "rsub",
        "subtract",
        "mul",
        "multiply",
        "div",
        "divide",
        "truediv",
        "true_divide",
        "neg",
        "negative",
    ),
    *("absolute", "pow", "lt", "le", "gt", "ge", "eq", "ne", "and_", "or_", "invert", "contiguous", "float", "double"),
    *("clip", "log_sigmoid", "type_as"),
}
