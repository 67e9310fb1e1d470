"""What every registered cell must do, and cells that a user could have written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.cells.base import Cell
from lifelong.agent.cells.ring import RingCell
from tests.agent.support import CELLS, OWN_CELLS

D, N, T, B = 5, 7, 9, 4
#: so few rows of what they attend to that these do not span all there is
OPTIONS: dict[str, dict[str, int]] = {
    "memory_network": {"slots": 4},
    "block_recurrent": {"size": 16, "vectors": 2, "block": 2},
}
pytestmark = pytest.mark.parametrize("name", CELLS + OWN_CELLS)


def make(name: str, input_size: int = D, size: int = N) -> Cell:
    torch.manual_seed(1)
    cell: Cell = registry.build("cell", {"kind": name, "size": size, **OPTIONS.get(name, {})}, input_size).double()
    for parameter in cell.parameters():  # biases too, so that a forgotten one shows
        torch.nn.init.normal_(parameter, std=0.6)
    return cell


def data(cell: Cell, steps: int = T, copies: int = B, resets: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(steps, copies, cell.input_size, generator=g, dtype=torch.float64)
    state = torch.randn(copies, cell.state_size, generator=g, dtype=torch.float64)
    if isinstance(cell, RingCell):
        state[:, cell.unit_state : cell.unit_state + cell.slots] = 1.0  # all of its inputs are there
    return x, state, torch.rand(steps, copies, generator=g) < resets


def test_shapes_are_those_it_declares_when_input_state_and_output_differ_in_size(name: str) -> None:
    cell = make(name, 11, 3)
    x, state, is_init = data(cell)
    y, final = cell.sequence(x, state, is_init)
    assert y.shape == (T, B, cell.output_size) and final.shape == (B, cell.state_size)
    y, final = cell.step(x[0], state)
    assert y.shape == (B, cell.output_size) and final.shape == (B, cell.state_size)


def test_the_initial_state_is_zeros_of_the_parameters_type(name: str) -> None:
    state = make(name).initial_state(B)
    assert state.shape == (B, make(name).state_size) and state.dtype == torch.float64 and not state.any()


def test_resetting_units_zeroes_all_that_the_state_holds_of_them_and_nothing_else(name: str) -> None:
    cell = make(name)
    state = torch.ones(B, cell.state_size, dtype=torch.float64)
    units = torch.tensor([0, cell.units - 1])
    if cell.composite:  # entries are in the order of its parts
        cell.reset_units(state, units)
        assert 0 < float(state[0].sum()) < cell.state_size
        cell.reset_units(state, torch.arange(cell.units))
        assert not state.any()
        return
    cell.reset_units(state, units)
    parts = state[:, : cell.unit_state].view(B, -1, cell.units)
    others = [unit for unit in range(cell.units) if unit not in units.tolist()]
    assert not parts[..., units].any() and bool((parts[..., others] == 1).all())
    assert bool((state[:, cell.unit_state :] == 1).all())


def test_the_states_of_a_sequence_are_those_of_the_steps_one_by_one(name: str) -> None:
    cell = make(name)
    x, state, is_init = data(cell)
    states = cell.states(x, state, is_init)
    assert states.shape == (T, B, cell.state_size) and not states.requires_grad
    torch.testing.assert_close(states[-1], cell.sequence(x, state, is_init)[1])
    for t in range(T):
        _, state = cell.step(x[t], state.masked_fill(is_init[t, :, None], 0.0))
        torch.testing.assert_close(states[t], state)


def test_a_sequence_is_the_steps_one_by_one_with_the_state_zeroed_at_resets(name: str) -> None:
    cell = make(name)
    x, state, is_init = data(cell)
    y, final = cell.sequence(x, state, is_init)
    for t in range(T):
        state = torch.where(is_init[t, :, None], torch.zeros_like(state), state)
        expected, state = cell.step(x[t], state)
        torch.testing.assert_close(y[t], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(final, state, rtol=0, atol=1e-12)


def test_a_reset_makes_two_sequences_of_one(name: str) -> None:
    cell = make(name)
    x, state, _ = data(cell)
    is_init = torch.zeros(T, B, dtype=torch.bool)
    is_init[4] = True
    y, final = cell.sequence(x, state, is_init)
    no_reset = torch.zeros_like(is_init)
    first, _ = cell.sequence(x[:4], state, no_reset[:4])
    second, end = cell.sequence(x[4:], cell.initial_state(B), no_reset[4:])
    torch.testing.assert_close(y, torch.cat([first, second]), rtol=0, atol=1e-12)
    torch.testing.assert_close(final, end, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", range(1, T))
def test_a_sequence_cut_anywhere_is_one_run(name: str, cut: int) -> None:
    cell = make(name)
    x, state, is_init = data(cell)
    whole, final = cell.sequence(x, state, is_init)
    first, middle = cell.sequence(x[:cut], state, is_init[:cut])
    second, end = cell.sequence(x[cut:], middle, is_init[cut:])
    torch.testing.assert_close(whole, torch.cat([first, second]), rtol=0, atol=1e-12)
    torch.testing.assert_close(final, end, rtol=0, atol=1e-12)


def test_copies_do_not_influence_each_other(name: str) -> None:
    cell = make(name)
    x, state, is_init = data(cell)
    whole, _ = cell.sequence(x, state, is_init)
    alone, _ = cell.sequence(x[:, 2:3], state[2:3], is_init[:, 2:3])
    torch.testing.assert_close(whole[:, 2:3], alone, rtol=0, atol=1e-12)


def test_gradients_reach_the_initial_state_and_stop_at_a_reset(name: str) -> None:
    cell = make(name)
    x, state, _ = data(cell)
    is_init = torch.zeros(T, B, dtype=torch.bool)
    is_init[2, 0] = True  # copy 0: its outputs from step 2 on know nothing of the initial state
    is_init[0, 1] = True  # copy 1: reset before the first step
    state.requires_grad_()
    y, final = cell.sequence(x, state, is_init)
    (late,) = torch.autograd.grad(y[2:].sum() + final.sum(), state, retain_graph=True)
    (early,) = torch.autograd.grad(y[:2].sum(), state)
    assert not late[0].any() and not late[1].any() and not early[1].any()
    assert bool((early[0].abs() > 0).any()) and bool((late[2:].abs() > 0).any(1).all())


def test_gradients_of_the_sequence_are_those_of_the_steps(name: str) -> None:
    cell = make(name)
    x, state, is_init = data(cell)
    x.requires_grad_()
    state.requires_grad_()
    inputs = [x, state, *cell.parameters()]
    weight = torch.randn(T, B, cell.output_size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y, final = cell.sequence(x, state, is_init)
    got = torch.autograd.grad((y * weight).sum() + final.square().sum(), inputs, materialize_grads=True)
    c, ys = state, []
    for t in range(T):
        y_t, c = cell.step(x[t], c * (~is_init[t]).unsqueeze(-1))
        ys.append(y_t)
    expected = torch.autograd.grad((torch.stack(ys) * weight).sum() + c.square().sum(), inputs, materialize_grads=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss_of", ["outputs", "final", "both"])
def test_a_compiled_sequence_equals_the_generic_loop_in_values_and_all_gradients(name: str, loss_of: str) -> None:
    cell = make(name)
    x, state, is_init = data(cell)
    is_init[0, 0] = is_init[T - 1, 1] = True
    is_init[:, 2] = True
    is_init[:, 3] = False
    x.requires_grad_()
    state.requires_grad_()
    inputs = [x, state, *cell.parameters()]
    weight = torch.randn(T, B, cell.output_size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for sequence in (type(cell).sequence, Cell.sequence):
        y, final = sequence(cell, x, state, is_init)
        loss = (y * weight).sum() * (loss_of != "final") + final.square().sum() * (loss_of != "outputs")
        found.append([y, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def presynaptic_of(cell: Cell, x: Tensor, state: Tensor, is_init: Tensor) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for t in range(x.shape[0]):
            before = state * (~is_init[t]).unsqueeze(-1)
            for tap, vectors in cell.presynaptic(x[t], before).items():
                found.setdefault(tap, []).append(vectors)
            _, state = cell.step(x[t], before)
    return {tap: torch.cat(vectors) for tap, vectors in found.items()}


def test_changes_orthogonal_to_the_presynaptic_vectors_leave_every_output_as_it_was(name: str) -> None:
    """And changes along them do not, so the taps are the true inputs of the matrices, bias included."""
    cell = make(name, input_size=40)
    x, state, is_init = data(cell, steps=3, copies=2)
    before, _ = cell.sequence(x, state, is_init)
    parameters = dict(cell.named_parameters())
    taps, seen = cell.taps(), presynaptic_of(cell, x, state, is_init)
    assert taps.keys() == seen.keys()
    covered = {n for weights, bias in taps.values() for n in [*weights, *([bias] if bias else [])]}
    # what no tap covers must be declared element-wise, or nothing would protect it; GRU's two biases go with two taps
    assert covered | set(cell.elementwise_parameters()) == set(parameters)

    def change(project: bool) -> Tensor:
        torch.manual_seed(4)
        saved = {n: p.detach().clone() for n, p in parameters.items()}
        with torch.no_grad():
            for tap, (weights, bias) in taps.items():
                vectors = seen[tap]
                if bias:
                    vectors = torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)
                rows = parameters[weights[0]].shape[0]
                delta = torch.randn(rows, vectors.shape[1], dtype=torch.float64)
                if project:
                    q, _ = torch.linalg.qr(vectors.T)
                    delta = delta - (delta @ q) @ q.T
                assert delta.norm() > 1
                sizes = [parameters[n].shape[1] for n in weights] + ([1] if bias else [])
                assert sum(sizes) == vectors.shape[1]
                parts = delta.split(sizes, 1)
                for n, part in zip(weights, parts, strict=False):
                    parameters[n] += part
                if bias:
                    parameters[bias] += parts[-1].squeeze(1)
            after, _ = cell.sequence(x, state, is_init)
            for n, p in parameters.items():
                p.copy_(saved[n])
        return after

    torch.testing.assert_close(change(project=True), before.detach(), rtol=0, atol=1e-10)
    assert float((change(project=False) - before).detach().abs().max()) > 1e-2


def test_the_declared_jacobian_is_the_real_one(name: str) -> None:
    cell = make(name)
    if cell.composite:  # engines ask its parts
        assert cell.jacobian == "dense" and len({*cell.parts}) > 1
        return
    x, state, _ = data(cell, copies=1)
    if not cell.unit_state:  # it remembers what it heard, and nothing of its own
        assert cell.jacobian == "dense" and not cell.recurrent_parameters()
        return
    own = cell.unit_state
    found = [torch.autograd.functional.jacobian(lambda s: cell.step(x[0], s)[1], s) for s in (state, -3 * state)]
    jacobian, elsewhere = (j[0, :own, 0, :own] for j in found)
    state_of = torch.arange(own)
    unit = state_of % cell.units
    between_units = bool((jacobian[unit[:, None] != unit] != 0).any())
    off_diagonal = bool((jacobian[state_of[:, None] != state_of] != 0).any())
    assert bool((jacobian.diagonal() != 0).any())
    diagonal = "linear_diagonal" if torch.allclose(jacobian, elsewhere, rtol=0, atol=1e-12) else "diagonal"
    assert cell.jacobian == ("dense" if between_units else "block" if off_diagonal else diagonal)
