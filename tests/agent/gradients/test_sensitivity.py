"""Engines for every cell: `exact` is the gradient of the whole history, the others are what their papers say.

The references are one autograd graph over all steps, and second implementations of every engine that go step by step
with whole Jacobians from autograd; none of them uses `agent.cells.local`, a kernel or a carry.
"""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong.agent import registry
from lifelong.agent.cells.base import Cell
from lifelong.agent.cells.local import Derivatives, derivatives_of
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.exact import Exact
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.gradients.sensitivity import Sensitivity
from lifelong.agent.gradients.snap1 import SnAp1
from lifelong.agent.gradients.snap2 import SnAp2, reach, restricted
from lifelong.agent.gradients.uoro import UORO
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.objectives.ppo import PPO
from lifelong.agent.policy import Policy
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.runtime.session import gradient_report
from lifelong.envs.options import Width
from lifelong.replay.chunk import Chunk, concatenate
from tests.agent.gradients.chunks import (
    B,
    chunked_gradient,
    double_policy,
    gradients_of,
    history,
    max_relative_error,
    split,
    whole_history_gradient,
)
from tests.agent.support import CELLS, OWN_CELLS, assert_identical, make_context, make_trainer, run, some_slow


class Leaky(Cell):
    """A leaky network of rate units, h' = (1 - alpha) h + alpha tanh(W x + U h + b): Murray 2019, eq. 1."""

    ALPHA = 0.3

    def __init__(self, input_size: int, *, size: Width = 8) -> None:
        super().__init__(input_size, size, size)
        self.weight = nn.Parameter(torch.randn(size, input_size) / 2)
        self.coupling = nn.Parameter(torch.randn(size, size) / size**0.5)
        self.offset = nn.Parameter(torch.randn(size) / 2)

    def state_from(self, drives: dict[str, Tensor], state: Tensor) -> Tensor:
        return (1 - self.ALPHA) * state + self.ALPHA * torch.tanh(drives["joint"])

    def drives(self, x_BD: Tensor, state_BS: Tensor) -> dict[str, Tensor]:
        return {"joint": x_BD @ self.weight.T + state_BS @ self.coupling.T + self.offset}

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN = self.state_from(self.drives(x_BD, state_BS), state_BS)
        return h_BN, h_BN

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"joint": (["weight", "coupling"], "offset")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"joint": torch.cat([x_MD, state_MS], -1)}


class Closed(Leaky):
    """The same, which says nothing of its inside."""

    state_from = Cell.state_from

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN = Leaky.state_from(self, self.drives(x_BD, state_BS), state_BS)
        return h_BN, h_BN


class Echo(Cell):
    """Three parts a unit, of which two read each other's units."""

    def __init__(self, input_size: int, *, size: Width = 8) -> None:
        super().__init__(input_size, 3 * size, size)
        self.size = size
        self.fast = nn.Parameter(torch.randn(2 * size, size) / size**0.5)
        self.feed = nn.Parameter(torch.randn(2 * size, input_size) / size**0.5)
        self.slow = nn.Parameter(torch.randn(size, size) / size**0.5)

    def state_from(self, drives: dict[str, Tensor], state: Tensor) -> Tensor:
        a, b, c = state.chunk(3, -1)
        first, second = drives["fast"].chunk(2, -1)
        a = torch.tanh(first + b)
        return torch.cat([a, 0.8 * b + torch.tanh(second) * c, torch.sin(drives["slow"] + a)], -1)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        a, _, c = state_BS.chunk(3, -1)
        drives = {"fast": x_BD @ self.feed.T + a @ self.fast.T, "slow": c @ self.slow.T}
        state_BS = self.state_from(drives, state_BS)
        return state_BS[:, : self.size], state_BS

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"fast": (["feed", "fast"], None), "slow": (["slow"], None)}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        a, _, c = state_MS.chunk(3, -1)
        return {"fast": torch.cat([x_MD, a], -1), "slow": c}


class Step(nn.Module):
    """The state after one step."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.cell.step(x, state)[1]


LEAKY, CLOSED, ECHO = (f"tests.agent.gradients.test_sensitivity:{name}" for name in ("Leaky", "Closed", "Echo"))
#: a memory network's state depends on no parameter
DENSE = [n for n in CELLS if registry.load("cell", n).jacobian == "dense" and n != "memory_network"]
ELEMENTWISE = [n for n in CELLS if registry.load("cell", n).jacobian != "dense"] + OWN_CELLS
COUPLED = ["rnn", "gru", "lstm", LEAKY]
DEAR = ["block_recurrent", "tkan"]  # as one block
QUICK = [name for name in [*DENSE, *ELEMENTWISE, LEAKY, CLOSED, ECHO] if name not in DEAR]
KNOWN = [*COUPLED, "leaky", "nbrc", ECHO, *ELEMENTWISE]
ENGINES = [n for n in registry.REGISTRY["gradient"] if issubclass(registry.load("gradient", n), Sensitivity)]
NOISY = ["uoro", "kf_rtrl"]


def make(kind: str, cell: Cell, copies: int = B, **options: Any) -> Any:
    return registry.build("gradient", {"kind": kind, **options}, cell, copies)


def carried(policy: Policy) -> list[str]:
    names = [f"cell.{name}" for name in policy.cell.recurrent_parameters()]
    return [name for name in names if policy.get_parameter(name).numel()]


def advance(engine: GradientEngine, parts: list[Experience]) -> None:
    for part in parts:
        engine.advance(engine.trace(part.x_TBD, part.state_TBS, part.chunk.is_init))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


# ---- local derivatives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", KNOWN)
def test_local_derivatives_are_those_of_a_cell_about_which_nothing_is_known(cell: str) -> None:
    made = double_policy(cell).cell
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, B, made.input_size, generator=g, dtype=torch.float64)
    state = torch.randn(3, B, made.state_size, generator=g, dtype=torch.float64)
    is_init = torch.rand(3, B, generator=g) < 0.3
    known, local = derivatives_of(made), derivatives_of(made)(x, state, is_init)
    assert type(known) is not Derivatives
    whole = Derivatives(made)
    expected = whole(x, state, is_init)
    J = local.jacobian()
    torch.testing.assert_close(J, expected.jacobian(), rtol=1e-12, atol=1e-12)
    units = torch.arange(made.state_size) % made.units
    own = J * (units[:, None] == units)
    got = torch.zeros_like(J).view(3, B, known.parts, known.units, known.parts, known.units)
    got.diagonal(dim1=3, dim2=5).copy_(local.blocks())
    torch.testing.assert_close(got.view_as(J), own, rtol=1e-12, atol=1e-12)
    v = torch.randn(B, made.state_size, generator=g, dtype=torch.float64)
    torch.testing.assert_close(local.forward(1, v), torch.einsum("bij,bj->bi", J[1], v))
    back, drives = local.backward(1, v)
    torch.testing.assert_close(back, torch.einsum("bji,bj->bi", J[1], v))
    matrices = [torch.einsum("br,bm->rm", drive, z[1]) for drive, z in zip(drives, local.read_TBM, strict=True)]
    found = dict(zip(known.names(), known.gradients(matrices), strict=True))
    for tap, of_tap in zip(whole.taps, expected.drive_TBPGN, strict=True):
        if not tap.rows:
            continue
        torch.testing.assert_close(found[tap.names[0]].flatten(), torch.einsum("bs,bsp->p", v, of_tap[1, ..., 0]))


def test_a_weight_that_reads_something_else_than_a_part_of_the_state_is_refused() -> None:
    class Squared(Leaky):
        def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
            return {"joint": torch.cat([x_MD, state_MS**2], -1)}

    with pytest.raises(ValueError, match="the weight coupling of the cell reads neither its input nor a part"):
        derivatives_of(Squared(3))


# ---- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "chunks"), [(1, 6), (7, 3)])
@pytest.mark.parametrize("cell", some_slow([*DENSE, *ELEMENTWISE, LEAKY, CLOSED, ECHO], {LEAKY, CLOSED, ECHO}))
def test_exact_is_the_gradient_of_the_whole_history_and_bptt_is_not(cell: str, steps: int, chunks: int) -> None:
    policy = double_policy(cell)
    data = history(policy, steps, chunks)
    parts = split(policy, data, steps)
    expected = whole_history_gradient(policy, data, parts)
    exact = chunked_gradient(policy, parts, Exact(policy.cell, B))
    bptt = chunked_gradient(policy, parts, BPTT(policy.cell, B))
    names = carried(policy)
    others = [name for name in expected if name not in names]
    timeless = {f"cell.{name}" for name in policy.cell.timeless_parameters()}
    assert all(name.startswith(("actor.", "critic.")) or name in timeless for name in others)
    errors = max_relative_error(exact, expected, names), max_relative_error(bptt, expected, names)
    print(f"\nrelative error of {cell} T={steps} K={chunks}: exact {errors[0]:.1e}, bptt {errors[1]:.1e}")
    assert errors[0] <= 1e-10
    assert all(max_relative_error(bptt, expected, [name]) > 1e-4 for name in names)
    assert max_relative_error(exact, expected, others) <= 1e-10


@pytest.mark.parametrize("cell", some_slow(ELEMENTWISE))
@pytest.mark.parametrize("kind", ["snap1", "snap2", "rflo", "eprop"])
def test_on_a_cell_that_couples_no_two_units_it_is_rtrl(kind: str, cell: str) -> None:
    policy = double_policy(cell)
    parts = split(policy, history(policy, 5, 3), 5)
    engine = make(kind, policy.cell)
    expected = chunked_gradient(policy, parts, RTRL(policy.cell, B))  # type: ignore[arg-type]
    got = chunked_gradient(policy, parts, engine)
    assert max_relative_error(got, expected, list(expected)) <= 1e-12
    assert engine.exact_parameters() == policy.cell.recurrent_parameters() and not engine.approximate_parameters()


# ---- second implementations ------------------------------------------------------------------------------------------


class Steps:
    """A history step by step: whole Jacobians, and what a step's state does to a loss at a fixed future; the loss
    is the outputs times fixed weights."""

    def __init__(self, policy: Policy, parts: list[Experience]) -> None:
        self.cell, self.names = policy.cell, policy.cell.recurrent_parameters()
        self.parameters = [self.cell.get_parameter(name) for name in self.names]
        self.x, self.before = (torch.cat([getattr(p, name) for p in parts]) for name in ("x_TBD", "state_TBS"))
        self.is_init = torch.cat([part.chunk.is_init for part in parts])
        T, g = len(self.x), torch.Generator().manual_seed(9)
        self.weight = torch.randn(T, B, self.cell.output_size, generator=g, dtype=torch.float64)
        self.keep = (~self.is_init).double().unsqueeze(-1)
        #: [B, S, S] dstate/dstate, [B, S, P] dstate/dparameters and [B, S] dloss/dstate of every step, all else fixed
        self.J, self.I, self.e = [], [], []
        for t in range(T):
            rows = [self._row(t, b) for b in range(B)]
            for into, column in zip((self.J, self.I, self.e), zip(*rows, strict=True), strict=True):
                into.append(torch.stack(column))

    def _row(self, t: int, b: int) -> tuple[Tensor, Tensor, Tensor]:
        x, before = self.x[t, b : b + 1], (self.before[t, b : b + 1] * self.keep[t, b]).requires_grad_()
        state = self.cell.step(x, before)[1]
        inputs = [before, *self.parameters]
        found = [torch.autograd.grad(s, inputs, retain_graph=True, materialize_grads=True) for s in state[0]]
        J = torch.stack([row[0][0] for row in found]) * self.keep[t, b]
        leaf = state.detach().requires_grad_()
        (e,) = torch.autograd.grad((self.cell.output(x, leaf) * self.weight[t, b]).sum(), leaf)
        return J, torch.stack([torch.cat([g.flatten() for g in row[1:]]) for row in found]), e[0]

    def unit(self) -> tuple[Tensor, Tensor]:
        """The units of the state's entries and of the parameters' entries."""
        N = self.cell.output_size
        rows = [torch.arange(len(p)) % N for p in self.parameters]
        every = [row.unsqueeze(1).expand(len(row), p[0].numel()).flatten() for row, p in zip(rows, self.parameters)]  # noqa: B905
        return torch.arange(self.cell.state_size) % N, torch.cat(every)

    def traces(self, stand_in: Any, mask: Tensor | None = None) -> list[Tensor]:
        """S_t = stand_in(J_t) S_{t-1} + I_t, masked, after every step."""
        S, found = torch.zeros_like(self.I[0]), []
        for t, (J, immediate) in enumerate(zip(self.J, self.I, strict=True)):
            S = stand_in(t, J) @ S + immediate
            S = S if mask is None else S * mask
            found.append(S)
        return found

    def by_name(self, gradient_P: Tensor) -> dict[str, Tensor]:
        parts = gradient_P.split([p.numel() for p in self.parameters])
        return {f"cell.{n}": g.view_as(p) for n, p, g in zip(self.names, self.parameters, parts, strict=True)}


def carried_product(engine: Any, boundary: Tensor) -> dict[str, Tensor]:
    names = [f"cell.{name}" for name in engine.derivatives.names()]
    return dict(zip(names, engine.boundary(boundary, None), strict=True))


def assert_carries(engine: Any, steps: Steps, S_BSP: Tensor) -> None:
    boundary = torch.randn(S_BSP.shape[:2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = steps.by_name(torch.einsum("bs,bsp->p", boundary, S_BSP))
    got = carried_product(engine, boundary)
    assert got.keys() == expected.keys()
    assert max_relative_error(got, expected, list(expected)) <= 1e-10


def sparse_policy(cell: str) -> Policy:
    policy = double_policy(cell)
    N, g = policy.cell.output_size, torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in ("hidden.weight", "coupling"):
            if name in dict(policy.cell.named_parameters()):
                weight = policy.cell.get_parameter(name)
                holes = torch.rand(N, N, generator=g) < 0.7
                weight *= ~holes.repeat(len(weight) // N, 1)
    return policy


@pytest.mark.parametrize(
    ("kind", "cell"), [*((kind, cell) for kind in ("snap1", "snap2") for cell in COUPLED), ("snap1", ECHO)]
)
def test_snap_is_rtrl_with_the_entries_masked_that_are_not_reached(kind: str, cell: str) -> None:
    policy = sparse_policy(cell)
    data = history(policy, 4, 3)
    parts = split(policy, data, 4)
    engine, exact = make(kind, policy.cell), Exact(policy.cell, B)
    advance(engine, parts)
    advance(exact, parts)
    steps = Steps(policy, parts)
    N = policy.cell.output_size

    def whole_units(pattern: Tensor) -> Tensor:
        return pattern.view(-1, N, pattern.shape[1]).any(0).repeat(len(pattern) // N, 1)

    pattern = whole_units((torch.stack(steps.I) != 0).any(0).any(0))  # SnAp-1: what one step reaches
    state_unit, unit = steps.unit()
    assert torch.equal(pattern, state_unit[:, None] == unit)
    if kind == "snap2":
        adjacency = torch.eye(len(pattern)) + (torch.stack(steps.J) != 0).any(0).any(0)
        pattern = whole_units(adjacency @ pattern.float() > 0)
        assert 0.2 < float(pattern.float().mean()) < 0.8
        assert abs(float(engine.report()["carry_kept"]) - float(pattern.float().mean())) < 0.2
    S = steps.traces(lambda t, J: J, pattern.double())[-1]
    assert_carries(engine, steps, S)
    assert_carries(exact, steps, steps.traces(lambda t, J: J)[-1])
    with pytest.raises(AssertionError):
        assert_carries(exact, steps, S)


@pytest.mark.parametrize("cell", COUPLED)
def test_snap2_with_every_unit_reached_is_exact_by_either_way(cell: str) -> None:
    policy = double_policy(cell)
    parts = split(policy, history(policy, 4, 3), 4)
    engine, exact = SnAp2(policy.cell, B), Exact(policy.cell, B)
    advance(engine, parts[:2])
    advance(exact, parts[:2])
    assert_identical(engine.state_dict(), exact.state_dict())
    trace = exact.trace(parts[2].x_TBD, parts[2].state_TBS, parts[2].chunk.is_init)
    assert bool(reach(trace.local).all())
    got = restricted(exact.state_dict(), trace.local, reach(trace.local))
    expected = exact.moved(exact.state_dict(), trace.local, None)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", COUPLED)
def test_snap2_with_no_unit_reached_but_its_own_is_snap1(cell: str) -> None:
    policy = double_policy(cell)
    N = policy.cell.output_size
    weight = policy.cell.get_parameter("coupling" if cell == LEAKY else "hidden.weight")
    with torch.no_grad():
        weight *= torch.eye(N).repeat(len(weight) // N, 1)
    parts = split(policy, history(policy, 4, 3), 4)
    one, two = (chunked_gradient(policy, parts, engine(policy.cell, B)) for engine in (SnAp1, SnAp2))
    assert max_relative_error(two, one, list(one)) <= 1e-12


def test_rflo_is_the_eligibility_trace_of_a_leaky_network() -> None:
    """Murray 2019, eq. 7: p_t[i, j] = (1 - alpha) p_{t-1}[i, j] + alpha phi'(u_t[i]) z_t[j]."""
    policy = double_policy(LEAKY)
    cell: Any = policy.cell
    data = history(policy, 4, 3)
    parts = split(policy, data, 4)
    engine = make("rflo", cell)
    advance(engine, parts)
    p = torch.zeros(B, 7, 4 + 7 + 1, dtype=torch.float64)
    for part in parts:
        for t in range(4):
            keep = (~part.chunk.is_init[t]).double().unsqueeze(1)
            h = part.state_TBS[t] * keep
            z = torch.cat([part.x_TBD[t], h, torch.ones(B, 1)], 1)
            u = z @ torch.cat([cell.weight, cell.coupling, cell.offset[:, None]], 1).detach().T
            slope = 1 - torch.tanh(u) ** 2
            p = (1 - cell.ALPHA) * p * keep[..., None] + cell.ALPHA * slope[..., None] * z[:, None]
    boundary = torch.randn(B, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.einsum("bn,bnm->nm", boundary, p).split([4, 7, 1], 1)
    got = carried_product(engine, boundary)
    for name, gradient in zip(["cell.weight", "cell.coupling", "cell.offset"], expected, strict=True):
        torch.testing.assert_close(got[name], gradient.view_as(got[name]), rtol=1e-10, atol=1e-12)


def eprop_of_an_lstm(cell: Any, steps: Steps) -> dict[str, Tensor]:
    """Bellec et al. 2020, eqs. 1, 13 and 14, for the hidden state c and the observable state h of an LSTM:
    eps_t = f_t eps_{t-1} + dc_t/dW at fixed h_{t-1} and c_{t-1}, e_t = dh_t/dc_t eps_t + dh_t/dW at a fixed c_t, and
    dL/dW = sum_t L_t e_t."""
    N = cell.size
    W = torch.cat([cell.input.weight, cell.hidden.weight, cell.input.bias[:, None]], 1).detach()
    eps = torch.zeros(B, 3, N, W.shape[1], dtype=torch.float64)  # of the gates i, f, g
    total = torch.zeros_like(W)
    for x, before, keep, L in zip(steps.x, steps.before, steps.keep, steps.weight, strict=True):
        h, c = (before * keep).chunk(2, 1)
        z = torch.cat([x, h, torch.ones(B, 1)], 1)
        i, f, g, o = (z @ W.T).chunk(4, 1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        new = f * c + i * g
        slopes = torch.stack([g * i * (1 - i), c * f * (1 - f), i * (1 - g**2)], 1)
        eps = (f * keep)[:, None, :, None] * eps + slopes[..., None] * z[:, None, None]
        inner = (o * (1 - torch.tanh(new) ** 2))[:, None, :, None] * eps
        gate = (torch.tanh(new) * o * (1 - o))[..., None] * z[:, None]
        e = torch.cat([inner.flatten(1, 2), gate], 1)  # gate order i, f, g, o
        total += (L.repeat(1, 4)[..., None] * e).sum(0)
    weights = total.split([x.shape[1], N, 1], 1)
    return {"cell.input.weight": weights[0], "cell.hidden.weight": weights[1], "cell.input.bias": weights[2].squeeze(1)}


def cut(policy: Policy, engine: GradientEngine, steps: Steps, length: int) -> dict[str, Tensor]:
    """The gradient of the loss of `steps` in chunks of `length`."""
    policy.zero_grad()
    for start in range(0, len(steps.x), length):
        here = slice(start, start + length)
        trace = engine.trace(steps.x[here], steps.before[here], steps.is_init[here])
        y, _ = engine.sequence(steps.x[here], engine.attach(steps.before[start]), steps.is_init[here])
        (y * steps.weight[here]).sum().backward()
        engine.advance(trace)
    return gradients_of(policy)


@pytest.mark.parametrize("length", [1, 4, 12])
def test_eprop_is_eligibility_traces_times_learning_signals_wherever_chunks_are_cut(length: int) -> None:
    policy = double_policy("lstm")
    steps = Steps(policy, split(policy, history(policy, 4, 3), 4))
    expected = eprop_of_an_lstm(policy.cell, steps)
    got = cut(policy, make("eprop", policy.cell), steps, length)
    assert max_relative_error(got, expected, list(expected)) <= 1e-10
    exact = cut(policy, Exact(policy.cell, B), steps, length)
    assert max_relative_error(got, exact, list(expected)) > 1e-2


@pytest.mark.parametrize("length", [1, 4, 12])
@pytest.mark.parametrize("cell", ["gru", "lstm", "elstm", CLOSED])
def test_dsf_sends_errors_back_over_a_fixed_diagonal_wherever_chunks_are_cut(cell: str, length: int) -> None:
    """Caillon et al. 2025: delta_t = e_t + D delta_{t+1}, dL/dtheta = sum_t delta_t I_t."""
    policy = double_policy(cell)
    steps = Steps(policy, split(policy, history(policy, 4, 3), 4))
    got = cut(policy, make("dsf", policy.cell, low=0.2, high=0.8), steps, length)
    parts = policy.cell.state_size // policy.cell.output_size
    D = torch.linspace(0.2, 0.8, policy.cell.output_size, dtype=torch.float64).repeat(parts)
    back, total = torch.zeros_like(steps.e[0]), torch.zeros_like(steps.I[0][0, 0])
    for t in reversed(range(len(steps.x))):
        delta = steps.e[t] + back
        total += torch.einsum("bs,bsp->p", delta, steps.I[t])
        back = D * delta * steps.keep[t]
    expected = steps.by_name(total)
    assert max_relative_error(got, expected, list(expected)) <= 1e-10


@pytest.mark.parametrize("kind", ["eprop", "dsf"])
@pytest.mark.parametrize("cell", [*COUPLED, CLOSED])
def test_local_feedback_changes_no_output_and_no_gradient_to_a_step_s_own_input(kind: str, cell: str) -> None:
    policy = double_policy(cell)
    steps = Steps(policy, split(policy, history(policy, 4, 3), 4))
    engine = make(kind, policy.cell)
    x = steps.x.clone().requires_grad_()
    y, last = engine.sequence(x, steps.before[0], steps.is_init)
    expected, expected_last = policy.cell.sequence(x, steps.before[0], steps.is_init)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected_last, rtol=1e-12, atol=1e-12)
    (got,) = torch.autograd.grad(y[-1].sum(), x, retain_graph=True)
    (whole,) = torch.autograd.grad(expected[-1].sum(), x)
    torch.testing.assert_close(got[-1], whole[-1], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(got[0], whole[0]) or (kind, cell) == ("eprop", CLOSED)


# ---- without bias ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "chunks"), [(1, 6), (4, 3)])
@pytest.mark.parametrize("kind", NOISY)
def test_the_mean_over_many_draws_is_the_exact_gradient_within_its_standard_error(
    kind: str, steps: int, chunks: int
) -> None:
    draws, policy = 20_000, double_policy("gru", size=3)
    parts = split(policy, history(policy, steps, chunks), steps)
    exact, engine = Exact(policy.cell, 1), make(kind, policy.cell, draws)
    for part in parts:
        one = part.x_TBD[:, 4:5], part.state_TBS[:, 4:5], part.chunk.is_init[:, 4:5]  # the copy that remembers all
        exact.advance(exact.trace(*one))
        engine.advance(engine.trace(*(x.expand(-1, draws, *x.shape[2:]) for x in one)))
    S = torch.cat([x.flatten() for x in exact.carry.values()])
    k = range(len(engine.taps))
    if kind == "uoro":
        every = [torch.einsum("bs,brm->bsrm", engine.carry["a"], engine.carry[f"w{i}"]) for i in k]
    else:
        every = [torch.einsum("bsr,bm->bsrm", engine.carry[f"a{i}"], engine.carry[f"u{i}"]) for i in k]
    flat = torch.cat([x.flatten(1) for x in every], 1)
    error = flat.std(0) / math.sqrt(draws)
    score = (flat.mean(0) - S) / error.clamp(min=1e-12)
    assert float(score.abs().max()) < 5.0 and 0.5 < float(score.square().mean()) < 1.5
    assert float(error.norm()) < 0.15 * float(S.norm())  # so a biased estimate would show
    assert float((flat[0] - S).norm()) > 0.1 * float(S.norm())


def test_uoro_with_chunks_of_one_step_is_the_papers_algorithm() -> None:
    """Tallec & Ollivier 2018, algorithm 1, with the signs that the engine draws."""
    policy = double_policy("gru", size=3)
    parts = split(policy, history(policy, 1, 6), 1)
    steps, engine = Steps(policy, parts), UORO(policy.cell, B)
    drawn: list[Tensor] = []
    signs = engine.signs
    engine.signs = lambda *args: drawn.append(signs(*args)) or drawn[-1]  # type: ignore[func-returns-value,method-assign]
    advance(engine, parts)
    a, w = torch.zeros_like(steps.e[0]), torch.zeros_like(steps.I[0][:, 0])
    for J, immediate, nu in zip(steps.J, steps.I, drawn, strict=True):
        forward, back = torch.einsum("bij,bj->bi", J, a), torch.einsum("bs,bsp->bp", nu, immediate)
        tiny = 1e-300
        p0 = ((w.norm(dim=1) + tiny) / (forward.norm(dim=1) + tiny)).sqrt()[:, None]
        p1 = (back.norm(dim=1) / nu.norm(dim=1)).sqrt()[:, None]
        gone = forward.norm(dim=1, keepdim=True) == 0  # a reset, or the first step
        a, w = p0 * forward + p1 * nu, torch.where(gone, 0.0, w / p0) + back / p1
    assert_carries(engine, steps, torch.einsum("bs,bp->bsp", a, w))


def test_signs_are_balanced_independent_and_go_on_from_where_they_were() -> None:
    engine = make("uoro", double_policy("gru").cell, 500)
    draws = torch.stack([engine.signs(engine.carry, None, 40) for _ in range(30)])
    assert bool((draws.abs() == 1).all())
    limit = 5 / math.sqrt(draws.numel())
    assert abs(float(draws.mean())) < limit
    for dim in range(3):
        assert abs(float((draws * draws.roll(1, dim)).mean())) < limit
    assert engine.carry["count"].tolist() == [30] * 500
    again = make("uoro", double_policy("gru").cell, 500)
    again.carry["count"] += 29
    assert torch.equal(again.signs(again.carry, None, 40), draws[29])
    index = torch.tensor([3, 400])
    again.carry["count"] -= 1
    rows = {name: x[index] for name, x in again.carry.items()}
    assert torch.equal(again.signs(rows, index, 40), draws[29, index])
    again.seed(1)
    again.carry["count"][:] = 29
    assert abs(float((again.signs(again.carry, None, 40) * draws[29]).mean())) < 5 / math.sqrt(20_000)


# ---- the carry as an object ------------------------------------------------------------------------------------------


def filled(kind: str, cell: str = "lstm") -> tuple[Policy, Any, list[Experience]]:
    policy = double_policy(cell)
    parts = split(policy, history(policy, 4, 3), 4)
    for part in parts:
        part.chunk.is_init[:, :4] &= torch.rand(4, 1) < 0  # nobody forgets
    engine = make(kind, policy.cell)
    advance(engine, parts[:2])
    return policy, engine, parts


def copied(engine: Any) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in engine.state_dict().items()}


every_engine = pytest.mark.parametrize("kind", ENGINES)


@every_engine
def test_a_reset_forgets_the_copies_and_no_other(kind: str) -> None:
    _, engine, _ = filled(kind)
    before, mask = copied(engine), torch.tensor([True, False, False, True, False])
    engine.reset(mask)
    for name, x in engine.state_dict().items():
        assert torch.equal(x[~mask], before[name][~mask])
        assert name in engine.COUNTERS or (not x[mask].any() and bool(before[name][mask].any()))


@every_engine
@pytest.mark.parametrize("cell", ["gru", "lstm", CLOSED])
def test_the_carry_of_some_copies_moves_as_that_of_all_does(kind: str, cell: str) -> None:
    _, engine, parts = filled(kind, cell)
    other = make(kind, engine.cell)
    other.load_state_dict(copied(engine))
    advance(engine, parts[2:])
    part = parts[2]
    for index in (torch.tensor([3, 0]), torch.tensor([1, 2, 4])):
        some = part.x_TBD[:, index], part.state_TBS[:, index], part.chunk.is_init[:, index]
        other.advance(other.trace(*some, index))
    for name, x in engine.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], x, rtol=1e-10, atol=1e-12)


@every_engine
def test_a_carry_goes_through_a_file_bit_for_bit_and_stays_in_place_without_a_graph(kind: str) -> None:
    policy, engine, parts = filled(kind)
    where = {name: (x.data_ptr(), x.shape) for name, x in engine.state_dict().items()}
    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    file.seek(0)
    other = make(kind, policy.cell)
    other.load_state_dict(torch.load(file, weights_only=True))
    advance(engine, parts)
    advance(other, parts)
    assert_identical(engine.state_dict(), other.state_dict())
    for name, x in engine.state_dict().items():
        assert (x.data_ptr(), x.shape) == where[name] and not x.requires_grad and len(x) == B
    assert sum(x[0].numel() for x in engine.state_dict().values()) == type(engine).carry_numbers(policy.cell)


@pytest.mark.parametrize("kind", ["exact", "snap1", "uoro", "kf_rtrl"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_unit_that_begins_anew_has_no_history_and_its_old_weights_none_in_the_others(cell: str, kind: str) -> None:
    _, engine, _ = filled(kind, cell)
    twin = make(kind, engine.cell)
    twin.load_state_dict(copied(engine))
    engine.reset_units(torch.tensor([1, 4]))
    boundary = torch.randn(B, engine.cell.state_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = carried_product(engine, boundary)
    of_units = torch.isin(torch.arange(engine.cell.state_size) % 7, torch.tensor([1, 4]))
    rest = carried_product(twin, boundary.masked_fill(of_units, 0.0))
    for name, gradient in got.items():
        rows = torch.isin(torch.arange(len(gradient)) % 7, torch.tensor([1, 4]))
        assert not gradient[rows].any()
        torch.testing.assert_close(gradient[~rows], rest[name][~rows])
    some = make(kind, engine.cell)
    some.load_state_dict(copied(twin))
    some.reset_units(torch.tensor([1, 4]), torch.tensor([2, 0]))
    for name, x in some.state_dict().items():
        assert torch.equal(x[[0, 2]], engine.state_dict()[name][[0, 2]])
        assert torch.equal(x[[1, 3, 4]], twin.state_dict()[name][[1, 3, 4]])


@every_engine
@pytest.mark.parametrize("cell", ["gru", "elstm", CLOSED])
def test_minibatches_and_replayed_copies_read_the_carry_of_live_copies_alone(kind: str, cell: str) -> None:
    policy, engine, parts = filled(kind, cell)
    live, replayed = parts[2].chunk, parts[1].chunk
    objective = PPO(policy.distribution)
    prepared = objective.prepare(live)

    def gradient(chunk: Chunk, state: Tensor, prepared: dict[str, Tensor]) -> dict[str, Tensor]:
        policy.zero_grad()
        objective.loss(policy.sequence(chunk, state, through=engine.sequence), chunk, prepared)[0].backward()
        return gradients_of(policy)

    expected = gradient(live, engine.attach(live.state), prepared)
    total = {name: torch.zeros_like(x) for name, x in expected.items()}
    for index in (torch.tensor([3, 0]), torch.tensor([1]), torch.tensor([4, 2])):
        some = live.select(index)
        of_some = {name: x.index_select(1, index) for name, x in prepared.items()}
        found = gradient(some, engine.attach(some.state, index), of_some)
        total = {name: x + found[name] * len(index) / B for name, x in total.items()}
    for name, x in expected.items():
        torch.testing.assert_close(total[name], x, rtol=1e-9, atol=1e-12)

    a2c = ActorCritic(policy.distribution)
    both = concatenate([live, replayed])

    class Append:
        def transform_batch(self, ctx: Any, chunk: Chunk) -> Chunk:
            return both

    learner = Learner(policy, engine, a2c, torch.optim.SGD(policy.parameters(), 0.0), [], 0.0, torch.Generator())
    learner.batch_hooks = [Append()]  # type: ignore[list-item]
    learner._step(make_context(policy, a2c, B, 4), live, {}, None, None)
    got = gradients_of(policy)
    policy.zero_grad()
    for chunk, state in ((live, engine.attach(live.state)), (replayed, replayed.state)):
        outputs = policy.sequence(chunk, state, through=engine.sequence)
        (a2c.loss(outputs, chunk, {})[0] / 2).backward()
    for name, x in gradients_of(policy).items():
        torch.testing.assert_close(got[name], x, rtol=1e-9, atol=1e-12)


# ---- in a run --------------------------------------------------------------------------------------------------------


@every_engine
def test_a_run_resumed_from_its_checkpoint_is_the_uninterrupted_run_bit_for_bit(kind: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "policy": {"cell": {"kind": "gru", "size": 5}},
        "gradient": kind,
        "strategy": [{"kind": "clear", "capacity": 24, "start": 8}, {"kind": "redo", "tau": 0.5, "period": 2}],
    }
    whole, first, second = (make_trainer(tmp_path / n, **changes) for n in ("whole", "cut", "cut"))
    run(whole)
    run(first, until=224)
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    torch.manual_seed(99)
    second.load_state_dict(saved)
    second.evaluations = first.evaluations
    assert_identical(second.learner.engine.state_dict(), first.learner.engine.state_dict())
    assert any(bool(x.any()) for x in first.learner.engine.state_dict().values())
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize(
    ("kind", "cell", "line"),
    [
        ("exact", "lstm", "exact over the whole history: cell.hidden.weight, cell.input.bias, cell.input.weight"),
        ("snap1", "rnn", "approximate over the whole history (SnAp-1: "),
        ("snap1", "elstm", "exact over the whole history: cell.bias, cell.weight_input, cell.weight_recurrent"),
        ("snap2", "gru", "approximate over the whole history (SnAp-2: "),
        ("uoro", "elstm", "approximate over the whole history (UORO: without bias, "),
        ("kf_rtrl", "lstm", "approximate over the whole history (KF-RTRL: without bias, "),
        ("rflo", "gru", "approximate over the whole history (RFLO: "),
        ("eprop", "gru", "approximate over the whole history (e-prop: "),
        ("dsf", "elstm", "approximate over the whole history (DSF: "),
    ],
)
def test_the_run_says_which_gradients_are_exact_which_approximate_and_how(
    kind: str, cell: str, line: str, tmp_path: Path
) -> None:
    encoder = {"kind": "mlp", "hidden": [4]}
    trainer = make_trainer(tmp_path, policy={"cell": {"kind": cell, "size": 5}, "encoder": encoder}, gradient=kind)
    report = gradient_report(trainer).splitlines()
    assert report[0].startswith(line)
    assert report[1].startswith("no path through time: ") and "actor.linear.weight" in report[1]
    inside = {"eprop": ", and approximate inside them", "dsf": ", and approximate inside them"}.get(kind, ":")
    assert report[2].startswith(f"truncated at 4 steps{inside}") and "encoder" in report[2]


class Life:
    """All that happened to the memory and the carry of an engine, as one autograd graph.

    Args:
        engine: before its first chunk.
    """

    def __init__(self, engine: Any) -> None:
        self.engine, self.cell, self.names = engine, copy.deepcopy(engine.cell).double(), engine.derivatives.names()
        self.chunks: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        self.forgotten: dict[int, list[Tensor]] = {}  # units that began anew, by the number of chunks before
        trace, reset_units = engine.trace, engine.reset_units

        def traced(x: Tensor, state: Tensor, is_init: Tensor, **options: Any) -> Any:
            now = {name: p.detach().double() for name, p in engine.cell.named_parameters()}
            self.chunks.append((x.detach().double().clone(), is_init.clone(), now))
            return trace(x, state, is_init, **options)

        def forget(units: Tensor, index: Tensor | None = None) -> None:
            self.forgotten.setdefault(len(self.chunks), []).append(units)
            reset_units(units, index)

        engine.trace = lambda x, state, is_init, index=None, **options: traced(x, state, is_init, **options)
        engine.reset_units = forget

    def memory(self, truncated: bool = False) -> tuple[Tensor, list[Tensor]]:
        """The memory, as a function of a change that the parameters of all chunks (the last one) have in common; the
        rows of a unit that began anew have it from then on."""
        changes = [torch.zeros_like(self.cell.get_parameter(n), requires_grad=True) for n in self.names]
        state = self.cell.initial_state(self.engine.copies)
        for number, (x, is_init, now) in enumerate(self.chunks):
            state = state.detach() if truncated and number == len(self.chunks) - 1 else state
            later = [u for at, units in self.forgotten.items() if at > number for u in units]
            kept = torch.ones(self.cell.units, dtype=torch.float64)
            kept[torch.cat([*later, torch.zeros(0, dtype=torch.int64)])] = 0.0
            moved = {f"cell.{n}": p for n, p in now.items()}
            for name, change in zip(self.names, changes, strict=True):
                rows = kept.repeat(len(change) // len(kept)).view(-1, *[1] * (change.dim() - 1))
                moved[f"cell.{name}"] = now[name] + change * rows
            for x_BD, is_init_B in zip(x, is_init, strict=True):
                before = state * (~is_init_B).unsqueeze(1)
                state = torch.func.functional_call(Step(self.cell), moved, (x_BD, before))
            for units in self.forgotten.get(number + 1, []):
                of_units = torch.isin(torch.arange(self.cell.state_size) % self.cell.units, units)
                state = state.masked_fill(of_units, 0.0)
        return state, changes


@pytest.mark.parametrize("strategy", ["finetune", "er", "redo", "shrink_perturb", "packnet"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_carry_is_exact_over_the_whole_history_of_a_run(cell: str, strategy: str, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "er": {"capacity": 24, "start": 8},
        "redo": {"tau": 0.7, "period": 2},
        "shrink_perturb": {"shrink": 0.01, "noise": 0.02},
        "packnet": {"keep": 0.5, "prune_after": 96},
    }
    tasks = [{"name": f"t{i}", "env": {"kind": "TMaze", "corridor": 9, "reversed": i}} for i in (0, 1)]
    spec = {"kind": strategy, **options.get(strategy, {})}
    policy = {"cell": {"kind": cell, "size": 6}}
    trainer = make_trainer(tmp_path, strategy=[spec], policy=policy, gradient="exact", stream={"tasks": tasks})
    engine: Any = trainer.learner.engine
    life = Life(engine)
    run(trainer, until=256)
    memory, changes = life.memory()
    assert len(life.chunks) == 8 and bool(life.forgotten) == (strategy in ("redo", "packnet"))
    torch.testing.assert_close(memory.float(), trainer.rollout.state_BS, rtol=1e-4, atol=1e-5)
    boundary = torch.randn(memory.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = torch.autograd.grad(memory, changes, boundary)
    carried = engine.boundary(boundary.float(), None)
    for mine, theirs in zip(carried, whole, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    memory, changes = life.memory(truncated=True)
    short = torch.autograd.grad(memory, changes, boundary)
    assert not torch.allclose(carried[1].double(), short[1], rtol=1e-2, atol=1e-3 * float(short[1].abs().max()))
