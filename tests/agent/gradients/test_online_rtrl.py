"""The carry while parameters move: how stale it is, its correction, time constants; and immediate derivatives alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.cells.base import CellChunk, ElementwiseCell
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.immediate import Immediate
from lifelong.agent.gradients.online_rtrl import OnlineRTRL
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.runtime import checkpoint
from tests.agent.support import Silent, assert_identical, make_trainer, run

T, B, D, N = 40, 2, 3, 4
CELLS = ["elstm", "rtu", "min_gru", "diagonal_lstm"]


def make_cell(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    cell = registry.build("cell", {"kind": kind, "size": N}, D).double()
    with torch.no_grad():
        for p in cell.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return cell


def data(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and resets, some of them within."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, D, generator=g, dtype=torch.float64), torch.rand(T, B, generator=g) < 0.05


def moved(cell: Any, name: str, entry: int, engine: RTRL, rate: float, *, every: bool = False) -> tuple[Tensor, Tensor]:
    """The engine's carry after T steps in which parameters moved after each, and what it is under the last ones on the
    memory as it was lived; all steps have their sizes and signs from a table."""
    x, is_init = data()
    g = torch.Generator().manual_seed(2)
    state, states = torch.zeros(B, cell.state_size, dtype=torch.float64), []
    for t in range(T):
        states.append(state)
        trace = engine.trace(x[t : t + 1], state[None], is_init[t : t + 1])
        with torch.no_grad():
            _, state = cell.step(x[t], state * (~is_init[t]).unsqueeze(1))
            for other in cell.recurrent_parameters():
                step = torch.randn(cell.get_parameter(other).shape, generator=g, dtype=torch.float64) + 0.5
                if every:
                    cell.get_parameter(other).add_(rate * step)
                elif other == name:
                    cell.get_parameter(other).view(-1)[entry] += rate * step.view(-1)[entry]
        engine.advance(trace)
    lived = torch.stack(states)
    engine.trace(x[:1], lived[:1], is_init[:1])  # the next chunk begins: the carry has gone with the parameters
    fresh = RTRL(cell, B)
    fresh.advance(fresh.trace(x, lived, is_init))
    return joined(engine), joined(fresh)


def joined(engine: RTRL) -> Tensor:
    return torch.cat([engine.weight_BGND.flatten(1), engine.small_BMN.flatten(1)], 1)


def own_entries(cell: Any, name: str, entry: int) -> list[int]:
    """Where the carry has the sensitivities of every part of the state to one parameter."""
    gates, vectors, P = len(cell.GATES), len(cell.VECTORS), cell.PARTS
    weights = gates * N * D
    if name == "weight_input":
        return [p * weights + entry for p in range(P)]
    entry += 0 if name == "bias" else gates * N
    return [P * weights + p * (gates + vectors) * N + entry for p in range(P)]


MOVING = [
    ("elstm", "weight_input", 5),
    ("elstm", "bias", 2),
    ("elstm", "weight_recurrent", 1),
    ("rtu", "weight_recurrent", 1),
    ("rtu", "weight_recurrent", 6),
    ("min_gru", "weight_input", 4),
    ("diagonal_lstm", "weight_input", 17),
    ("diagonal_lstm", "weight_recurrent", 9),
]


@pytest.mark.parametrize(("kind", "name", "entry"), MOVING)
def test_the_correction_makes_the_error_one_of_second_order(kind: str, name: str, entry: int) -> None:
    errors: dict[bool, list[float]] = {True: [], False: []}
    for taylor in errors:
        for rate in (4e-4, 2e-4, 1e-4):
            cell = make_cell(kind)
            carry, fresh = moved(cell, name, entry, OnlineRTRL(cell, B, window=0, taylor=taylor), rate)
            own = own_entries(cell, name, entry)
            errors[taylor].append(float((carry - fresh)[:, own].norm()))
    slopes = {k: math.log2(e[0] / e[2]) / 2 for k, e in errors.items()}
    assert 0.9 < slopes[False] < 1.1
    assert 1.85 < slopes[True] < 2.15
    assert errors[True][-1] < 0.05 * errors[False][-1]


@pytest.mark.parametrize("kind", CELLS)
def test_where_all_parameters_move_it_leaves_what_they_owe_to_each_other(kind: str) -> None:
    """The error does not grow, and is still of first order."""
    found = {}
    for taylor in (True, False):
        for rate in (2e-4, 1e-4):
            cell = make_cell(kind)
            carry, fresh = moved(cell, "", 0, OnlineRTRL(cell, B, window=0, taylor=taylor), rate, every=True)
            found[taylor, rate] = float((carry - fresh).norm())
    assert found[True, 1e-4] < 1.05 * found[False, 1e-4]
    assert math.log2(found[True, 2e-4] / found[True, 1e-4]) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("kind", CELLS)
def test_the_meter_is_the_distance_of_a_carry_that_is_computed_again(kind: str) -> None:
    cell = make_cell(kind)
    engine = OnlineRTRL(cell, B, window=T)
    carry, fresh = moved(cell, "", 0, engine, 1e-3, every=True)  # the window begins with a carry of zero
    expected = ((carry - fresh).norm(dim=1) / fresh.norm(dim=1)).mean()
    assert float(expected) > 1e-4
    assert float(engine.report()["carry_staleness"]) == pytest.approx(float(expected), rel=1e-5)
    still = OnlineRTRL(make_cell(kind), B, window=T)
    moved(still.cell, "", 0, still, 0.0)
    assert float(still.report()["carry_staleness"]) < 1e-6


def test_time_constants_are_those_of_the_decay() -> None:
    cell = make_cell("rtu")
    engine = OnlineRTRL(cell, B, window=T)
    moved(cell, "", 0, engine, 0.0)
    r = torch.exp(-torch.exp(cell.weight_recurrent[0].detach())).clamp(max=cell.max_radius)
    torch.testing.assert_close(engine.histograms()["time_constants"], -1 / r.log(), rtol=1e-3, atol=1e-4)
    report = engine.report()
    assert float(report["time_constant_longest"]) == pytest.approx(float((-1 / r.log()).max()), rel=1e-3)
    assert engine.histograms() and not OnlineRTRL(cell, B, window=0).histograms()


@pytest.mark.parametrize("options", [{"window": 7}, {"window": 5, "taylor": True}])
def test_a_run_that_was_stopped_goes_on_bit_for_bit_and_reports_the_same(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    changes = {"gradient": {"kind": "online_rtrl", **options}, "rollout": {"copies": 4, "steps": 3}}
    whole, part, rest = (make_trainer(tmp_path / folder, **changes) for folder in ("whole", "part", "part"))
    log = run(whole)
    assert log.seen["gradient/carry_staleness"] > 0 and log.seen["gradient/time_constant_median"] > 0
    run(part, until=100)
    saved, _ = checkpoint.load(tmp_path / "part" / "checkpoints")
    rest.load_state_dict(saved)
    run(rest)
    assert_identical(rest.state_dict(), whole.state_dict())


def test_without_options_it_is_rtrl(tmp_path: Path) -> None:
    states = []
    for kind in ("rtrl", "online_rtrl"):
        trainer = make_trainer(tmp_path / kind, gradient=kind)
        trainer.planned.plan = None
        run(trainer)
        states.append(trainer.rollout.policy.state_dict())
    assert_identical(*states)


def test_time_constants_are_a_histogram_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lifelong.agent.runtime.logging import RunLog

    trainer = make_trainer(tmp_path, gradient={"kind": "online_rtrl", "window": 8})
    log = RunLog(tmp_path, {})
    for _ in range(12):
        trainer.advance()
    trainer.log(log, Silent())  # type: ignore[arg-type]
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (point,) = events.Histograms("gradient/time_constants")
    constants = trainer.learner.engine.histograms()["time_constants"]
    assert point.histogram_value.num == len(constants) == sum(point.histogram_value.bucket)
    assert point.histogram_value.max == pytest.approx(float(constants.max()), rel=1e-5)
    (scalar,) = events.Scalars("gradient/carry_staleness")
    assert scalar.value > 0


@pytest.mark.parametrize(
    ("spec", "cap"),
    [
        ({"kind": "min_gru", "max_retention": 0.6}, 0.6),
        ({"kind": "min_lstm", "max_retention": 0.7}, 0.7),
        ({"kind": "lru", "max_radius": 0.5}, 0.5),
        ({"kind": "rtu", "max_radius": 0.5}, 0.5),
    ],
)
def test_a_cap_bounds_what_a_unit_keeps_and_nothing_below_it(spec: dict[str, Any], cap: float) -> None:
    kept = []
    for options in (spec, {"kind": spec["kind"]}):
        torch.manual_seed(0)
        cell = registry.build("cell", {"size": 16, **options}, D).double()
        x, is_init = data()
        chunk = CellChunk(
            x, torch.zeros(T, B, cell.state_size, dtype=torch.float64), is_init, *map(Tensor.detach, cell.spread())
        )
        J, _, _ = ElementwiseCell.local_derivatives(
            cell, chunk.drive(), chunk.weight_recurrent, chunk.state_TBS, is_init
        )
        kept.append(
            J[..., 0, 0, :].abs() if cell.PARTS == 1 else torch.linalg.eigvals(J.permute(0, 1, 4, 2, 3)).abs().amax(-1)
        )
    capped, free = kept
    assert float(capped.max()) == pytest.approx(cap, abs=1e-6) and float(free.max()) > cap
    torch.testing.assert_close(capped, free.clamp(max=cap))


# ---- immediate derivatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["elstm", "rtu", "gru", "lstm"])
def test_immediate_derivatives_are_the_sum_of_steps_by_themselves(kind: str) -> None:
    cell = make_cell(kind)
    x, is_init = data()
    want, state, outputs = (
        {n: torch.zeros_like(p) for n, p in cell.named_parameters()},
        torch.zeros(B, cell.state_size, dtype=torch.float64),
        [],
    )
    g = torch.Generator().manual_seed(5)
    feedback = torch.randn(T, B, cell.output_size, generator=g, dtype=torch.float64)
    for t in range(T):
        y, state = cell.step(x[t], state.detach() * (~is_init[t]).unsqueeze(1))
        outputs.append(y)
        grads = torch.autograd.grad(
            (y * feedback[t]).sum(), list(cell.parameters()), retain_graph=True, allow_unused=True
        )
        for n, gradient in zip(want, grads, strict=True):
            want[n] = want[n] if gradient is None else want[n] + gradient
    start = torch.zeros(B, cell.state_size, dtype=torch.float64)
    engine, got = Immediate(cell, B), {n: torch.zeros_like(p) for n, p in want.items()}
    for first in range(0, T, 8):
        rows = slice(first, first + 8)
        y, start = engine.sequence(x[rows], engine.attach(start.detach()), is_init[rows])
        torch.testing.assert_close(y, torch.stack(outputs[rows]))
        grads = torch.autograd.grad((y * feedback[rows]).sum(), list(cell.parameters()), allow_unused=True)
        for n, gradient in zip(got, grads, strict=True):
            got[n] = got[n] if gradient is None else got[n] + gradient
    for n in want:
        torch.testing.assert_close(got[n], want[n], msg=n)
    assert not engine.exact_parameters() and not engine.state_dict()


def test_at_one_step_a_chunk_immediate_is_bptt() -> None:
    cell = make_cell("elstm")
    x, is_init = data()
    start = torch.randn(B, cell.state_size, dtype=torch.float64)
    both = []
    for engine in (Immediate(cell, B), BPTT(cell, B)):
        y, _ = engine.sequence(x[:1], engine.attach(start), is_init[:1])
        both.append(torch.autograd.grad(y.square().sum(), list(cell.parameters())))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)
