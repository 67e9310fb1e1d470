"""Units: what belongs to them, what a reset reaches, that gradients stay exact after one; ReDo, continual backprop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.agent.cells.base import Cell, DiagonalCell
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.moments import moments
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.parallel import Workers
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.continual_backprop import ContinualBackprop
from lifelong.agent.strategies.redo import ReDo
from lifelong.agent.strategies.units import CELL, Layer, activations, layers_of, reset
from tests.agent.gradients.test_rtrl import EXACT, B, double_policy, split
from tests.agent.group import in_group
from tests.agent.support import (
    OWN_CELLS,
    UNIT_CELLS,
    act_through,
    make_context,
    make_policy,
    make_trainer,
    random_chunk,
    run,
)

#: as many features as the cell has units, and as it has inputs: shapes alone do not tell rows from columns
SQUARE = {"encoder": {"kind": "mlp", "hidden": [5, 6]}}
IMAGE = {"encoder": {"kind": "cnn", "channels": [3, 4], "hidden": 6}}
CRELU = {"encoder": {"kind": "mlp", "hidden": [5, 6], "activation": "crelu"}}
CRELU_IMAGE = {"encoder": {"kind": "cnn", "channels": [3, 4], "hidden": 6, "activation": "crelu"}}
PIXELS = gymnasium.spaces.Box(0, 1, (1, 6, 6), np.float32)


def context_of(policy: Policy, optimizer: torch.optim.Optimizer | None = None) -> Context:
    changes = {} if optimizer is None else {"optimizer": optimizer}
    return make_context(policy, ActorCritic(policy.distribution), 4, 4, **changes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(policy: Policy, name: str = CELL) -> Layer:
    return next(layer for layer in layers_of(policy) if layer.name == name)


def values(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def forget(policy: Policy, state: Tensor, units: Tensor) -> Tensor:
    state = state.clone()
    policy.cell.reset_units(state, units)
    return state


# ---- what belongs to a unit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("previous", [False, True], ids=["features", "features-action-reward"])
@pytest.mark.parametrize("cell", UNIT_CELLS + OWN_CELLS)
def test_what_a_unit_hears_and_says_goes_through_its_entries_and_no_others(cell: str, previous: bool) -> None:
    """Incoming: changing them changes the unit alone, until others hear it. Outgoing: without them nobody hears it."""
    policy = make_policy(cell, 6, previous_action=previous, previous_reward=previous, **SQUARE).double()
    inputs = policy.cell.input_size
    x = torch.randn(4, 3, inputs, generator=generator(), dtype=torch.float64)
    nothing, unit = torch.zeros(4, 3, dtype=torch.bool), torch.tensor([2])
    others = [0, 1, 3, 4, 5]
    state = torch.zeros(3, policy.cell.state_size, dtype=torch.float64)
    layer, before = layer_of(policy), values(policy)
    with torch.no_grad():
        for part in layer.outgoing:
            policy.get_parameter(part.parameter).index_fill_(part.dim, part.of(unit), 0.0)
        silent, _ = policy.cell.sequence(x, state, nothing)
        for part in layer.incoming:
            parameter = policy.get_parameter(part.parameter)
            noise = torch.randn(parameter.shape, generator=generator(1), dtype=torch.float64)
            for out in layer.outgoing:  # a connection of the unit to itself is both
                if out.parameter == part.parameter:
                    noise.index_fill_(out.dim, out.of(unit), 0.0)
            index = part.of(unit)
            parameter.index_add_(part.dim, index, noise.index_select(part.dim, index))
        changed, _ = policy.cell.sequence(x, state, nothing)
    torch.testing.assert_close(silent[..., others], changed[..., others], rtol=0, atol=1e-14)
    assert float((silent[..., 2] - changed[..., 2]).abs().mean()) > 1e-6  # a rectified one may be silent at times
    heads = torch.cat([policy.actor.linear.weight, policy.critic.weight])
    torch.testing.assert_close(silent @ heads.T, changed @ heads.T, rtol=0, atol=1e-14)
    touched = {name for name, value in values(policy).items() if not torch.equal(value, before[name])}
    expected = {f"cell.{name}" for names in policy.cell.unit_parameters() for name in names}
    shared = {f"cell.{name}" for name in policy.cell.shared_parameters()}
    assert expected | shared == {f"cell.{name}" for name, _ in policy.cell.named_parameters()}
    assert touched == expected | {"actor.linear.weight", "critic.weight"}


@pytest.mark.parametrize(
    ("options", "space", "count"),
    [(SQUARE, 4, 2), (IMAGE, PIXELS, 3), (CRELU, 4, 2), (CRELU_IMAGE, PIXELS, 3)],
    ids=["mlp", "cnn", "mlp-crelu", "cnn-crelu"],
)
def test_a_silenced_unit_of_an_encoder_can_be_redrawn_without_anybody_hearing_it(
    options: dict[str, Any], space: Any, count: int
) -> None:
    policy = make_policy("gru", 6, observation=space, previous_reward=True, **options)
    layers = layers_of(policy)
    assert [layer.name for layer in layers][-1] == CELL and len(layers) == count + 1
    chunk = random_chunk(policy, 3, 4)
    chunk.previous_reward = chunk.reward
    for layer in layers[:-1]:
        units, before = torch.tensor([1, 2]), values(policy)
        heard = policy.sequence(chunk, chunk.state).policy
        reset(context_of(policy), [(layer, units)], generator(1))
        silent = policy.sequence(chunk, chunk.state).policy
        assert float((heard - silent).detach().abs().max()) > 1e-4
        reset(context_of(policy), [(layer, units)], generator(2))
        torch.testing.assert_close(policy.sequence(chunk, chunk.state).policy, silent, rtol=0, atol=1e-6)
        after = values(policy)
        weight = f"{layer.name}.weight"
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert weight in moved and len(moved) <= 4
        rows = (after[weight] != before[weight]).flatten(1).any(1)
        assert rows.nonzero().flatten().tolist() == [1, 2]


def test_a_reset_unit_takes_its_scale_and_shift_of_a_norm_with_it() -> None:
    policy = make_policy("gru", 6, encoder={"kind": "mlp", "hidden": [5], "norm": "layer"})
    with torch.no_grad():
        for name in ("weight", "bias"):
            policy.get_parameter(f"encoder.layers.1.{name}").fill_(7.0)
    layer = layer_of(policy, "encoder.layers.0")
    reset(context_of(policy), [(layer, torch.tensor([1, 3]))], generator())
    assert policy.get_parameter("encoder.layers.1.weight").tolist() == [7, 1, 7, 1, 7]
    assert policy.get_parameter("encoder.layers.1.bias").tolist() == [7, 0, 7, 0, 7]
    assert activations(policy, [layer], lived(policy))["encoder.layers.0"].shape[1] == 5


def test_a_cell_with_a_matrix_in_no_tap_is_refused_in_a_sentence(tmp_path: Path) -> None:
    policy = {"cell": {"kind": f"{__name__}:Mixed", "size": 6}}
    with pytest.raises(ConfigError, match=r"redo: the cell does not say in `taps` what its parameter mix reads"):
        make_trainer(tmp_path, policy=policy, strategy=[{"kind": "redo"}])


class Mixed(DiagonalCell):
    """Outputs a mixture of its state."""

    GATES = ("z",)

    def __init__(self, input_size: int, *, size: int = 8) -> None:
        super().__init__(input_size, size=size)
        self.mix = torch.nn.Parameter(torch.eye(size))

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        return torch.tanh(drives[0] + c)

    def output(self, x: Tensor, c: Tensor) -> Tensor:
        return c @ self.mix


# ---- a reset ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", UNIT_CELLS)
def test_a_reset_draws_what_is_incoming_and_zeroes_what_is_outgoing_and_the_optimisers_entries(cell: str) -> None:
    policy = make_policy(cell, 6, **SQUARE)
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    chunk = random_chunk(policy, 3, 4)
    for _ in range(2):
        outputs = policy.sequence(chunk, torch.ones_like(chunk.state))
        optimizer.zero_grad()
        (outputs.policy.square().sum() + outputs.value.sum()).backward()
        optimizer.step()
    before = values(policy)
    kept = {n: {k: v.clone() for k, v in moments(optimizer, p).items()} for n, p in policy.named_parameters()}
    fresh = policy.redrawn(generator(3))
    chosen = [(layer, torch.tensor([0, 4])) for layer in layers_of(policy)]
    reset(context_of(policy, optimizer), chosen, generator(3))
    drawn, zeroed = ({n: torch.zeros_like(v, dtype=torch.bool) for n, v in before.items()} for _ in range(2))
    for layer, units in chosen:
        for masks, parts in ((drawn, layer.incoming), (zeroed, layer.outgoing)):
            for part in parts:
                masks[part.parameter].index_fill_(part.dim, part.of(units), True)
    for name, parameter in policy.named_parameters():
        expected = torch.where(zeroed[name], 0.0, torch.where(drawn[name], fresh[name], before[name]))
        assert torch.equal(parameter, expected), name
        touched = drawn[name] | zeroed[name]
        known = {part.parameter for layer, _ in chosen for part in (*layer.incoming, *layer.outgoing)}
        assert bool(touched.any()) == (name in known)
        of_no_unit = {"actor.linear.bias", "critic.bias", *(f"cell.{n}" for n in policy.cell.shared_parameters())}
        assert name in known | of_no_unit
        assert kept[name].keys() == {"exp_avg", "exp_avg_sq"}
        for key, moment in moments(optimizer, parameter).items():
            assert torch.equal(moment, kept[name][key].masked_fill(touched, 0.0))
            assert not bool(kept[name][key][touched].eq(0).all()) or not bool(touched.any())
        assert float(optimizer.state[parameter]["step"]) == 2  # is the whole tensor's


@pytest.mark.parametrize(("betas", "largest"), [((0.9, 0.999), 6.6), ((0.99, 0.99), 1.0)])
def test_adams_steps_after_a_reset_are_as_large_as_documented(betas: tuple[float, float], largest: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], 1.0, betas, eps=0.0)
    steps = []
    for step in range(3000):
        if step == 2900:
            for moment in moments(optimizer, parameter).values():
                moment[0] = 0.0
        parameter.grad, before = torch.ones_like(parameter), parameter.detach().clone()
        optimizer.step()
        steps.append((before - parameter.detach())[0] / (before - parameter.detach())[1])
    t = torch.arange(1, 101)
    expected = (1 - betas[0] ** t) / (1 - betas[1] ** t) ** 0.5
    torch.testing.assert_close(torch.stack(steps)[2900:], expected.double(), rtol=0.04, atol=0)
    assert float(torch.stack(steps).max()) == pytest.approx(largest, rel=0.04)


@pytest.mark.parametrize("cell", UNIT_CELLS)
def test_resetting_units_that_nobody_hears_does_not_move_the_outputs(cell: str) -> None:
    policy = make_policy(cell, 6).double()
    chunk = random_chunk(policy, 5, 4, dtype=torch.float64)
    layer, units = layer_of(policy), torch.tensor([1, 5])
    state = torch.randn(4, policy.cell.state_size, generator=generator(), dtype=torch.float64)
    heard = policy.sequence(chunk, state)
    reset(context_of(policy), [(layer, units)], generator(1))
    silent = policy.sequence(chunk, state)
    assert float((heard.policy - silent.policy).detach().abs().max()) > 1e-3
    reset(context_of(policy), [(layer, units)], generator(2))
    after = policy.sequence(chunk, forget(policy, state, units))
    torch.testing.assert_close(after.policy, silent.policy, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.value, silent.value, rtol=0, atol=1e-12)


class Steps(torch.nn.Module):
    """A cell step by step, with nothing of its kernels."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for x_BD, is_init_B in zip(x_TBD, is_init_TB, strict=True):
            y_BH, state_BS = self.cell.step(x_BD, state_BS * (~is_init_B).unsqueeze(-1))
            outputs.append(y_BH)
        return torch.stack(outputs), state_BS


@pytest.mark.parametrize("cell", [name for name in EXACT if name in UNIT_CELLS + OWN_CELLS])
def test_the_gradient_is_exact_after_units_were_reset_on_a_border(cell: str) -> None:
    """Two chunks, a reset between them. The reference is one graph over both: the old parameters make the memory, the
    reset units' part of it is a constant zero, and the new parameters are the old ones moved by a constant."""
    policy = double_policy(cell)
    data = random_chunk(policy, 12, B, dtype=torch.float64)
    data.is_init[:] = False
    data.is_init[3, 3] = data.is_init[6, 4] = True  # inside the first chunk, and on the border
    first, second = split(policy, data, 6)
    units, old = torch.tensor([1, 4]), values(policy)
    rtrl, bptt, untold = RTRL(policy.cell, B), BPTT(policy.cell, B), RTRL(policy.cell, B)  # type: ignore[arg-type]
    names = [f"cell.{n}" for n in rtrl.exact_parameters() if policy.cell.get_parameter(n).numel()]
    engines: list[GradientEngine] = [rtrl, bptt, untold]
    for engine in engines:
        engine.advance(engine.trace(first.x_TBD, first.state_TBS, first.chunk.is_init))
    reset(context_of(policy), [(layer_of(policy), units)], generator(1))
    rtrl.reset_units(units)

    steps, theta = Steps(policy.cell), {name: old[name].requires_grad_() for name in names}
    call = torch.func.functional_call
    keep = torch.ones(1, policy.cell.state_size, dtype=torch.float64)
    policy.cell.reset_units(keep, units)
    before = (first.x_TBD, first.chunk.state, first.chunk.is_init)
    memory = call(steps, theta, before)[1] * keep
    moved = {name: theta[name] + (policy.get_parameter(name) - theta[name]).detach() for name in names}
    y, _ = call(steps, moved, (second.x_TBD, memory, second.chunk.is_init))
    weighting = torch.randn(y.shape, generator=generator(9), dtype=torch.float64)
    expected = torch.autograd.grad((y.square() * weighting).sum(), list(theta.values()))

    def error(engine: GradientEngine) -> float:
        y, _ = policy.cell.sequence(second.x_TBD, engine.attach(memory.detach()), second.chunk.is_init)
        got = torch.autograd.grad((y.square() * weighting).sum(), [policy.get_parameter(name) for name in names])
        return max(float((g - e).abs().max() / e.abs().max()) for g, e in zip(got, expected, strict=True))

    assert error(rtrl) < 1e-10
    assert error(bptt) > 1e-3  # has no history
    start = memory.detach().requires_grad_()
    said, _ = policy.cell.sequence(second.x_TBD, start, second.chunk.is_init)
    heard = torch.autograd.grad(said.sum(), start)[0][:, keep[0] == 0]
    # a carry that was not told has that of units that are gone, which counts where their memory is heard
    assert (error(untold) > 1e-3) == bool(heard.any())


# ---- through the trainer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 2])
def test_memory_and_carry_of_reset_units_are_zero_before_the_next_chunk(epochs: int, tmp_path: Path) -> None:
    spec = {"kind": "continual_backprop", "rate": 0.2, "maturity": 0}
    objective = {"kind": "ppo", "epochs": epochs, "minibatches": epochs}
    trainer = make_trainer(tmp_path, strategy=[spec], objective=objective, policy={"reset_memory_on": "never"})
    cell, told = trainer.rollout.policy.cell, []
    forget_units = trainer.forget

    def listen(units: Tensor | None) -> None:
        forget_units(units)
        if units is None:
            return
        told.append(units)
        state = trainer.rollout.state_dict()["state"].unflatten(-1, (-1, cell.output_size))
        carry = trainer.learner.engine.state_dict()
        zero = torch.zeros(cell.output_size, dtype=torch.bool)
        zero[units] = True
        assert torch.equal(state.eq(0).flatten(0, -2).all(0), zero)
        assert torch.equal(carry["small"].eq(0).flatten(0, 1).all(0), zero)
        assert torch.equal(carry["weight"].eq(0).transpose(2, 0).flatten(1).all(1), zero)

    trainer.forget = listen  # type: ignore[method-assign]
    run(trainer, until=128)
    assert [len(units) for units in told] == [1, 1, 1, 1]  # 0.2 * 6, the rest carried over


# ---- ReDo ------------------------------------------------------------------------------------------------------------

SEVEN = {"encoder": {"kind": "mlp", "hidden": [7], "activation": "relu"}}


def lived(policy: Policy, steps: int = 6, copies: int = 8, seed: int = 0) -> Experience:
    return act_through(policy, random_chunk(policy, steps, copies, seed=seed))[0]


def with_dormant(cell: str) -> Policy:
    """A policy whose encoder unit 3 is silent, and whose cell unit 2 always says the same."""
    policy = make_policy(cell, 6, previous_action=False, **SEVEN)
    hidden, layer = policy.get_parameter("encoder.layers.0.bias"), layer_of(policy)
    with torch.no_grad():
        policy.get_parameter("encoder.layers.0.bias").fill_(1.0)
        hidden[3] = -1e4
        for part in layer.incoming:
            policy.get_parameter(part.parameter).index_fill_(part.dim, part.of(torch.tensor([2])), 0.0)
    return policy


@pytest.mark.parametrize("cell", ["elstm", "diagonal_gru", "diagonal_lstm", "gru", "lstm"])
def test_redo_resets_units_made_dormant_and_no_others_and_only_when_it_looks(cell: str) -> None:
    policy = with_dormant(cell)
    redo, ctx = ReDo(tau=0.025, period=3), context_of(policy)
    redo.setup(ctx, 0)
    before = values(policy)
    for seed in range(2):
        assert redo.after_chunk(ctx, lived(policy, seed=seed)) is None
    assert all(torch.equal(value, before[name]) for name, value in values(policy).items())
    units = redo.after_chunk(ctx, lived(policy, seed=2))
    assert units is not None and units.tolist() == [2]
    report = redo.report()
    assert report["resets/cell"] == 1 and report["resets/encoder.layers.0"] == 1
    assert report["dormant/encoder.layers.0"] == pytest.approx(1 / 7)
    rows = (values(policy)["encoder.layers.0.weight"] != before["encoder.layers.0.weight"]).any(1)
    assert rows.nonzero().flatten().tolist() == [3]
    for seed in range(3, 9):  # they have begun to say something
        assert redo.after_chunk(ctx, lived(policy, seed=seed)) is None


def test_redo_leaves_the_function_alone_if_nobody_heard_the_unit() -> None:
    policy = with_dormant("gru")
    with torch.no_grad():
        for part in layer_of(policy).outgoing:
            policy.get_parameter(part.parameter).index_fill_(part.dim, part.of(torch.tensor([2])), 0.0)
    redo, ctx = ReDo(period=1), context_of(policy)
    redo.setup(ctx, 0)
    experience = lived(policy)
    before = policy.sequence(experience.chunk, experience.chunk.state)
    assert redo.after_chunk(ctx, experience) is not None
    after = policy.sequence(experience.chunk, experience.chunk.state)
    torch.testing.assert_close(after.policy, before.policy, rtol=0, atol=1e-6)


def test_a_gated_unit_that_is_never_silent_is_dormant_only_by_its_deviation() -> None:
    """A unit that always says 0.9 has by far the largest mean |h| of all, and means nothing."""
    policy = make_policy("lstm", 6)
    said = lived(policy)
    said.state_TBS[..., 2] = 0.9
    redo, ctx = ReDo(period=1), context_of(policy)
    redo.setup(ctx, 0)
    units = redo.after_chunk(ctx, said)
    assert units is not None and units.tolist() == [2]


def test_the_running_mean_of_a_cell_reaches_over_chunks() -> None:
    """One copy, chunks of one step: within a chunk nothing deviates from its mean."""
    policy = make_policy("lstm", 6)
    redo, ctx = ReDo(period=10, decay=0.9), context_of(policy)
    redo.setup(ctx, 0)
    g = generator(4)
    for _ in range(9):
        said = lived(policy, steps=1, copies=1)
        said.state_TBS.normal_(generator=g)
        said.state_TBS[..., 4] = 0.5
        assert redo.after_chunk(ctx, said) is None
    units = redo.after_chunk(ctx, said)
    assert units is not None and units.tolist() == [4]


# ---- continual backprop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "maturity"), [(0.013, 0), (0.013, 25), (0.4, 0), (1.0, 3)])
def test_the_number_of_replacements_is_the_rate_times_the_mature_units(rate: float, maturity: int) -> None:
    policy = make_policy("elstm", 6, **SEVEN)
    strategy, ctx = ContinualBackprop(rate=rate, maturity=maturity), context_of(policy)
    strategy.setup(ctx, 0)
    experience, chunks = lived(policy, 2, 2), 60
    due = 0.0
    for _ in range(chunks):
        mature = int((strategy.age["encoder.layers.0"] + 1 > maturity).sum())
        due += rate * mature
        strategy.after_chunk(ctx, experience)
        assert due - 1 - 1e-6 < strategy.resets["encoder.layers.0"] <= due + 1e-6  # never late, never early
    assert abs(strategy.resets["encoder.layers.0"] - math.floor(due)) <= 1
    if not maturity:
        assert abs(strategy.resets[CELL] - math.floor(rate * 6 * chunks)) <= 1


def test_the_unit_of_least_utility_is_replaced_and_no_young_one() -> None:
    policy = make_policy("gru", 6)
    strategy, ctx = ContinualBackprop(rate=0.99 / 6, maturity=2), context_of(policy)
    strategy.setup(ctx, 0)
    with torch.no_grad():  # nobody hears unit 1, and unit 4 is hardly heard
        for part in layer_of(policy).outgoing:
            parameter = policy.get_parameter(part.parameter)
            parameter.index_fill_(part.dim, part.of(torch.tensor([1])), 0.0)
            parameter.index_fill_(part.dim, part.of(torch.tensor([4])), 1e-5)
    replaced = [strategy.after_chunk(ctx, lived(policy, seed=seed)) for seed in range(5)]
    assert [None if units is None else units.tolist() for units in replaced] == [None, None, None, [1], [4]]


def test_utility_is_the_running_mean_of_activity_times_all_outgoing_weights() -> None:
    policy = make_policy("elstm", 6)
    strategy, ctx = ContinualBackprop(rate=0.0, decay=0.8), context_of(policy)
    strategy.setup(ctx, 0)
    out = policy.actor.linear.weight.abs().sum(0) + policy.critic.weight.abs().sum(0)
    out = (out + policy.get_parameter("cell.output_state").abs().sum(0)).detach()
    utility, mean = torch.zeros(6), torch.zeros(6)
    for seed in range(4):
        experience = lived(policy, seed=seed)
        h = experience.state_TBS.flatten(0, 1)
        mean = 0.8 * mean + 0.2 * h.mean(0)
        activity = (h - mean / (1 - 0.8 ** (seed + 1))).abs().mean(0)
        utility = 0.8 * utility + 0.2 * activity * out
        strategy.after_chunk(ctx, experience)
    torch.testing.assert_close(strategy.kept[CELL], utility)
    torch.testing.assert_close(strategy.unbiased(strategy.kept)[CELL], utility / (1 - 0.8**4))


# ---- what units say --------------------------------------------------------------------------------------------------


def test_activations_are_what_the_next_layer_reads() -> None:
    policy = make_policy("lstm", 6, **SQUARE)
    experience = lived(policy)
    said = activations(policy, layers_of(policy), experience)
    assert {name: x.shape[1] for name, x in said.items()} == {"encoder.layers.0": 5, "encoder.layers.2": 6, CELL: 6}
    torch.testing.assert_close(said["encoder.layers.2"], experience.x_TBD.flatten(0, 1))
    torch.testing.assert_close(said[CELL], experience.state_TBS.flatten(0, 1)[:, :6])
    assert not any(layer.activation._forward_hooks for layer in layers_of(policy) if layer.activation is not None)


def test_every_copy_of_a_large_chunk_is_looked_at() -> None:
    policy = make_policy("gru", 6)
    experience = lived(policy, 32, 128)
    experience.state_TBS[..., 0] = torch.arange(128.0)
    said = activations(policy, layers_of(policy), experience)[CELL]
    assert 700 <= len(said) <= 1024
    assert said[:, 0].unique().tolist() == list(range(128))


# ---- data-parallel workers -------------------------------------------------------------------------------------------


def lived_together(workers: Workers, folder: Path) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What the strategies hold, and the parameters, after three chunks of eight copies that the workers share."""
    results = []
    for strategy in (ReDo(tau=0.7, period=2), ContinualBackprop(rate=0.1, maturity=0)):
        policy = make_policy("elstm", 6, **SEVEN)
        ctx = make_context(policy, ActorCritic(policy.distribution), 4, 4, workers=workers)
        strategy.setup(ctx, 0)
        for seed in range(3):
            chunk = random_chunk(policy, 4, 8, seed=seed)
            mine = chunk.select(torch.arange(8)[workers.share(8)])
            strategy.after_chunk(ctx, act_through(policy, mine)[0])
        results.append((strategy.state_dict(), values(policy)))
    return results


@pytest.mark.slow
def test_two_workers_choose_and_draw_what_one_with_all_copies_does(tmp_path: Path) -> None:
    alone = lived_together(Workers(), tmp_path)
    both = in_group(2, tmp_path, {"units": lived_together})["units"]
    for (held, parameters), *shared in zip(alone, *both, strict=True):
        assert sum(held["resets"].values()) >= 2
        for their, drawn in shared:
            assert their["resets"] == held["resets"]
            assert all(torch.equal(drawn[name], value) for name, value in parameters.items())
