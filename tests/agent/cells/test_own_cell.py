"""What a cell of a dozen lines gets without another line: compiled kernels, exact RTRL, and the speed of both."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.cells.base import BlockCell, CellChunk, DiagonalCell
from lifelong.kernels import build, cache, dispatch


class Mine(DiagonalCell):
    """Three gates: what is forgotten, what is let in, and what that is."""

    GATES = ("forget", "input", "candidate")
    VECTORS = ("forget", "input", "candidate")

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        forget = torch.sigmoid(drives[0] + vectors[0] * c)
        let_in = torch.sigmoid(drives[1] + vectors[1] * c)
        return forget * c + let_in * torch.tanh(drives[2] + vectors[2] * c)


class Four(BlockCell):
    """A state of four parts, each driven by the one before it."""

    PARTS = 4
    GATES = ("keep", "input")
    VECTORS = ("ring",)

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], *parts: Tensor) -> tuple[Tensor, ...]:
        keep = torch.sigmoid(drives[0])
        first = keep * parts[0] + (1 - keep) * torch.tanh(drives[1] + vectors[0] * parts[3])
        return (first, *[0.5 * (parts[i] + torch.sin(parts[i - 1])) for i in (1, 2, 3)])


def chunk(cell: DiagonalCell | BlockCell, T: int, B: int) -> Callable[[], list[Tensor]]:
    """Forward, backward and carry of a chunk: what they give."""
    P, G, K, N, D = cell.PARTS, len(cell.GATES), len(cell.VECTORS), cell.size, cell.input_size
    like, g = cell.bias, torch.Generator().manual_seed(0)
    normal = [torch.randn(s, generator=g).to(like.dtype) for s in ((T, B, D), (T, B, N), (B, P * N))]
    x, e, state = normal
    is_init, parameters = torch.rand(T, B, generator=g) < 0.05, list(cell.parameters())
    carry = torch.zeros(B, P * G, N, D, dtype=like.dtype), torch.zeros(B, P * (G + K), N, dtype=like.dtype)

    def run() -> list[Tensor]:
        first = state.clone().requires_grad_()
        y, last = cell.sequence(x, first, is_init)
        *grads, boundary = torch.autograd.grad((y * e).sum(), [*parameters, first])
        with torch.no_grad():
            states = torch.cat([first[None], cell.states(x, first, is_init)[:-1]])
            seen = CellChunk(x, states, is_init, *[parameter.detach() for parameter in cell.spread()])
            cell.advance_carry(*carry, seen, boundary)
        return [y, last, *grads, *carry]

    return run


@pytest.mark.parametrize("kind", [Mine, Four])
@pytest.mark.parametrize("D", [3, 20])
def test_compiled_it_gives_what_eager_torch_gives(kind: type[DiagonalCell | BlockCell], D: int) -> None:
    torch.manual_seed(0)
    cell = kind(D, size=33).double()
    found = []
    for backend in ("auto", "reference"):
        run = chunk(cell, 6, 9)
        with dispatch.force(backend):
            run()
            found.append(run())
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.slow  # a machine that does other things at once must not fail `make test`
@pytest.mark.skipif(not build.can_compile(), reason="no C compiler")
def test_forward_backward_and_carry_take_a_fifth_of_the_eager_time() -> None:
    torch.manual_seed(0)
    run = chunk(Mine(128, size=128), T=64, B=32)

    def seconds(backend: str) -> float:
        with dispatch.force(backend):
            start = time.process_time()
            run()
            return time.process_time() - start

    seconds("auto"), seconds("reference")
    ratios = [seconds("reference") / seconds("auto") for _ in range(3)]
    assert statistics.median(ratios) > 5, ratios


@pytest.mark.skipif(not build.can_compile(), reason="no C compiler")
def test_its_first_use_compiles_once_for_all_cells_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    built = first_use(monkeypatch)[0]
    assert len(built) == 1 and built[0].startswith("recurrence-f32-")


@pytest.mark.slow
@pytest.mark.skipif(not build.can_compile(), reason="no C compiler")
def test_its_first_use_takes_half_a_second_beside_gcc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_use(monkeypatch)[1] < 0.5  # of tracing, writing and checking: gcc is another process


def first_use(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], float]:
    """What is built for two cells of a kind that was never used, and the processor time that it takes."""
    built: list[str] = []
    keep = cache.keep
    monkeypatch.setattr(cache, "load", lambda name: None)
    monkeypatch.setattr(cache, "keep", lambda name, path: (built.append(name), keep(name, path))[1])
    monkeypatch.setattr("lifelong.kernels.recurrence.program._programs", {})
    start = time.process_time()
    for size in (16, 24):
        cell = Mine(8, size=size)
        cell.sequence(torch.randn(3, 2, 8), torch.zeros(2, size), torch.zeros(3, 2, dtype=torch.bool))
    return built, time.process_time() - start


def test_a_branch_on_the_state_is_an_error_and_an_unknown_operation_one_line(caplog: pytest.LogCaptureFixture) -> None:
    class Branches(Mine):
        def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
            return c if c.sum() > 0 else -c

    class Unknown(Mine):
        def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
            return torch.erf(drives[0] + c)

    x, is_init = torch.randn(3, 2, 4), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="the recurrence of Branches cannot be one of a cell: its Python control flow"):
        Branches(4, size=5).sequence(x, torch.zeros(2, 5), is_init)
    with caplog.at_level(logging.WARNING):
        Unknown(4, size=5).sequence(x, torch.zeros(2, 5), is_init)
    assert caplog.text.count("\n") == 1 and "the recurrence of Unknown runs step by step" in caplog.text


def test_the_cell_of_the_page_is_compiled_and_is_what_its_lines_say() -> None:
    page = (Path(__file__).parents[3] / "docs" / "own_cell.md").read_text()
    names: dict[str, Any] = {"__name__": "mine"}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    torch.manual_seed(0)
    cell, mine = names["Mine"](5, size=7).double(), Mine(5, size=7).double()
    mine.load_state_dict(cell.state_dict())
    x, is_init = torch.randn(6, 3, 5, dtype=torch.float64), torch.rand(6, 3) < 0.3
    y, _ = cell.sequence(x, cell.initial_state(3), is_init)
    torch.testing.assert_close(y, mine.sequence(x, mine.initial_state(3), is_init)[0])
    assert cell.compiled_recurrence().program is not None
