"""The learner's own forward pass: weights that are absent, memories that begin elsewhere, and their exact gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.errors import ConfigError
from lifelong.agent.modules.learning_pass import LearningPass
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.trainer import Trainer
from tests.agent.support import assert_identical, make_trainer, run


def drop(cell: Any, rate: float = 0.5) -> LearningPass:
    made = LearningPass(cell, torch.Generator().manual_seed(0), rate=rate)
    made.draw()
    return made


def trainer(folder: Path, **changes: Any) -> Trainer:
    policy = {"cell": {"kind": "gru", "size": 6}, "weight_drop": 0.5}
    rollout = {"initial_state": "noise"}
    return make_trainer(folder, policy=policy, gradient="bptt", rollout=rollout, **changes)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm", "leaky"])
def test_values_and_gradients_are_those_of_a_cell_whose_weights_are_masked_by_hand(kind: str) -> None:
    torch.manual_seed(0)
    cell, other = (registry.build("cell", {"kind": kind, "size": 6}, 3).double() for _ in range(2))
    x, none = torch.randn(7, 4, 3).double(), torch.rand(7, 4) < 0.2
    state = torch.randn(4, cell.state_size).double()
    dropped = drop(cell)
    assert len(dropped.weights) == 1
    ((name, weight),) = dropped.weights.items()
    mask = dropped.masks[name]
    assert {*mask.unique().tolist()} == {0.0, 2.0} and "hidden" in name
    other.load_state_dict(cell.state_dict())
    with torch.no_grad():
        other.get_parameter(name).mul_(mask)
    y, last = dropped.sequence(x, state, none)
    expected, after = other.sequence(x, state, none)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, after)
    y.square().sum().backward()
    expected.square().sum().backward()
    for key, parameter in cell.named_parameters():
        gradient = other.get_parameter(key).grad
        torch.testing.assert_close(parameter.grad, gradient * mask if key == name else gradient)
    assert torch.equal(cell.get_parameter(name), weight)  # it is itself again


def test_the_first_step_of_an_episode_does_not_notice() -> None:
    cell = registry.build("cell", {"kind": "rnn", "size": 6}, 3)
    x, none = torch.randn(3, 4, 3), torch.zeros(3, 4, dtype=torch.bool)
    plain, _ = cell.sequence(x, torch.zeros(4, 6), none)
    dropped, _ = drop(cell, 0.9).sequence(x, torch.zeros(4, 6), none)
    assert torch.equal(plain[0], dropped[0]) and not torch.equal(plain[1], dropped[1])


def test_one_mask_serves_all_steps_of_a_chunk_and_none_the_policy_that_acts(tmp_path: Path) -> None:
    made = trainer(tmp_path, objective={"kind": "q_learning"}, optimizer={"kind": "sgd", "lr": 0.0})
    dropped: Any = made.learner.changed
    whole = {name: weight.detach().clone() for name, weight in dropped.weights.items()}
    seen: list[list[Tensor]] = []
    sequence = dropped.sequence

    def watched(*args: Any) -> Any:
        seen.append([mask.clone() for mask in dropped.masks.values()])
        return sequence(*args)

    dropped.sequence = watched
    for _ in range(2):
        made.advance()
        assert all(torch.equal(whole[name], weight) for name, weight in dropped.weights.items())
    assert len({tuple(mask.flatten().tolist()) for masks in seen for mask in masks}) == 2


@pytest.mark.parametrize("kind", ["gru", "elstm", "lru"])
@pytest.mark.parametrize("initial", ["noise", "passed"])
def test_an_episode_begins_with_noise_or_with_what_the_one_before_left(kind: str, initial: Any) -> None:
    """Beside the cell's own steps, one after the other."""
    torch.manual_seed(0)
    cell = registry.build("cell", {"kind": kind, "size": 6}, 3).double()
    x, is_init = torch.randn(9, 4, 3).double(), torch.rand(9, 4) < 0.25
    is_init[0, 1], is_init[4] = True, False
    start = torch.randn(4, cell.state_size).double().requires_grad_()
    made = LearningPass(cell, torch.Generator().manual_seed(5), initial=initial, noise=0.3)
    y, last = made.sequence(x, start, is_init)
    generator, state, rows = torch.Generator().manual_seed(5), start, []
    for t in range(9):
        if is_init[t].any():
            drawn = 0.3 * torch.randn(state.shape, generator=generator, dtype=state.dtype)
            begun = drawn if initial == "noise" else state.detach()
            state = torch.where(is_init[t].unsqueeze(1), begun, state)
        out, state = cell.step(x[t], state)
        rows.append(out)
    torch.testing.assert_close(y, torch.stack(rows))
    torch.testing.assert_close(last, state)
    inputs = [start, *cell.parameters()]
    ours = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad(torch.stack(rows).square().sum(), inputs, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert not ours[0][1].any()  # no gradient goes back beyond an episode's beginning


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = (trainer(tmp_path / n) for n in ("whole", "cut", "cut"))
    run(whole)
    run(first, until=96)
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    second.load_state_dict(saved)
    second.evaluations = first.evaluations
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gradient": "snap1"}, "gradient snap1 carries what was acted; use gradient bptt"),
        (
            {"policy": {"cell": "elstm", "weight_drop": 0.5}},
            "in cell elstm no matrix reads its state; use a dense cell",
        ),
        ({"gradient": "rtrl", "policy": {"cell": "elstm"}, "rollout": {"initial_state": "noise"}}, "use gradient bptt"),
        ({"objective": "ppo"}, "which objective ppo does not correct for; use objective actor_critic"),
    ],
)
def test_what_it_cannot_be_exact_with_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    base = {"policy": {"cell": "rnn", "weight_drop": 0.5}, "gradient": "bptt"}
    with pytest.raises(ConfigError, match=sentence):
        make_trainer(tmp_path, **{**base, **changes})
