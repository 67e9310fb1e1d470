"""Replay in a plan: what is learned, stored and drawn is that of the chunks one by one, and no part is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.config import merge
from lifelong.agent.runtime.planned import plan
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.clear import CLEAR
from lifelong.agent.strategies.replaying import Replaying
from lifelong.kernels import replay
from tests.agent.strategies.test_planned import assert_alike, trainer
from tests.agent.support import assert_identical, one_by_one, run

KEEPING: dict[str, Any] = {"capacity": 60, "start": 8}
PENDULUM = [{"name": name, "env": {"kind": "Pendulum", "max_episode_steps": 9}} for name in "ab"]
ENDING = [{"name": name, "env": {"kind": "MemoryChain", "length": 5, "bits": 2}} for name in "ab"]
PADDED = [
    {"name": "a", "env": {"kind": "RepeatPrevious", "symbols": 3}, "reward_scale": 0.5},
    {"name": "b", "env": {"kind": "CartPole", "max_episode_steps": 9}},
]
CLEARLY = {"kind": "clear", **KEEPING, "policy_cloning": 0.5, "value_cloning": 0.3}
EWC = {"kind": "ewc", "strength": 3.0, "sequences": 16}
SHOWN = {"policy": {"previous_action": True, "previous_reward": True}}
CASES: dict[str, dict[str, Any]] = {
    "er": {"strategy": [{"kind": "er", **KEEPING}]},
    "er, all kept": {"strategy": [{"kind": "perfect_memory", "start": 8}]},
    "clear": {"strategy": [CLEARLY]},
    "clear, a half": {"strategy": [{**CLEARLY, "ratio": 0.5, "writing": "ring", "sampling": "power_law"}]},
    "clear among others": {"strategy": ["si", CLEARLY, EWC, {"kind": "explore", "weight": 0.3, "steps": 320}]},
    "clear, shown": {"strategy": [CLEARLY], **SHOWN},
    "clear, padded": {"strategy": [CLEARLY], "stream": {"tasks": PADDED, "spaces": "pad"}, **SHOWN},
    "clear, observed": {"strategy": [CLEARLY], "stream": {"tasks": PADDED, "spaces": "pad", "task_id": "observed"}},
    "clear, never cut off": {"strategy": [CLEARLY], "stream": {"tasks": ENDING}},
    "clear, gaussian": {"strategy": [CLEARLY], "stream": {"tasks": PENDULUM}, **SHOWN},
    "clear, lstm": {"strategy": [CLEARLY], "gradient": "bptt", "policy": {"cell": {"kind": "lstm", "size": 7}}},
    "clear, identity": {
        "strategy": [CLEARLY],
        "policy": {"encoder": "identity", "cell": {"kind": "indrnn", "size": 7}},
    },
    "der": {"strategy": [{"kind": "der", **KEEPING, "matching": 0.4}]},
    "der, gaussian": {"strategy": [{"kind": "der", **KEEPING, "matching": 0.4}], "stream": {"tasks": PENDULUM}},
    "der_pp": {"strategy": [{"kind": "der_pp", **KEEPING, "matching": 0.4, "value_matching": 0.7}]},
}


def made(folder: Path, name: str) -> Trainer:
    case = dict(CASES[name])
    return trainer(folder, case.pop("strategy"), **case)


def buffer(of: Trainer) -> Any:
    return next(each for each in of.strategies if isinstance(each, Replaying)).replay


@pytest.mark.parametrize("name", CASES)
def test_planned_replay_is_that_chunk_by_chunk(name: str, tmp_path: Path) -> None:
    planned, eager = (made(tmp_path / each, name) for each in "ab")
    assert planned.planned.plan is not None, planned.planned.why
    one_by_one(eager)
    drawn = 0
    while planned.step < 320 + 3 * 32:  # over a border
        planned.advance()
        drawn += any(rounds.update.replayed is not None for rounds in planned.planned.plan.kept.values())  # type: ignore[union-attr]
        while eager.step < planned.step:
            eager.advance()
    assert drawn, "nothing was replayed in a plan"
    assert_alike(planned, eager)
    mine, its = (buffer(each).state_dict()["storage"] for each in (planned, eager))
    for field, wanted in its.items():
        if not wanted.is_floating_point():
            assert torch.equal(mine[field], wanted), field


@pytest.mark.parametrize("name", ["clear, padded", "der_pp"])
def test_how_many_rounds_are_made_at_once_changes_no_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = made(tmp_path / "many", name)
    run(many)
    monkeypatch.setattr(plan, "ROWS", 1)
    one = made(tmp_path / "one", name)
    run(one)
    assert one.step == many.step
    assert_identical(one.shared_state(), many.shared_state())
    assert_identical(one.own_state(), many.own_state())


@pytest.mark.parametrize("name", ["clear among others", "der_pp"])
def test_a_stopped_run_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    case = dict(CASES[name])
    strategy = case.pop("strategy")
    changes = merge(case, {"checkpoint": {"every": 64}})
    whole, first, second = (trainer(tmp_path / each, strategy, **changes) for each in "abc")
    run(whole)
    run(first, until=448)
    assert 448 <= first.step < whole.step
    second.load_state_dict(first.state_dict())
    run(second)
    assert whole.planned.plan is not None
    assert whole.planned.plan.kept
    assert_identical(second.shared_state(), whole.shared_state())
    assert_identical(second.own_state(), whole.own_state())


def _nothing(self: Any, *args: Any) -> list[Any]:
    return []


def _unheld(self: Any, copies: int) -> Any:
    return replace(Replaying.replays(self, copies), match=None)


def _unheld_policy(self: Any, copies: int) -> Any:
    told = CLEAR_REPLAYS(self, copies)
    return replace(told, match=told.match._replace(weights=(0.0, told.match.weights[1])))


def _by_itself(self: Any, copies: int) -> Any:
    told = CLEAR_REPLAYS(self, copies)
    return replace(told, match=told.match._replace(of_all=False))


def _weightless(self: Any, copies: int) -> Any:
    told = CLEAR_REPLAYS(self, copies)
    return replace(told, draws=[(count, 0.9) for count, _ in told.draws])


CLEAR_REPLAYS = CLEAR.replays
MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "no cloning": (CLEAR, "replays", _unheld),
    "no cloning of the policy": (CLEAR, "replays", _unheld_policy),
    "cloning by its own weight": (CLEAR, "replays", _by_itself),
    "replayed steps count less": (CLEAR, "replays", _weightless),
    "no correction": (replay, "subtract_call", lambda a, b, to: SUBTRACT(a, a, to)),
    "no values after truncated steps": (replay, "place_final_call", lambda step, value, final: ZERO(step, final)),
    "the memory after is another": (replay, "following_call", lambda *args: _swapped(*args)),
    "slots are not written": (replay, "put_slots_call", lambda *args: SUBTRACT(*[torch.zeros(1)] * 3)),
}
SUBTRACT, FINAL, FOLLOWING = replay.subtract_call, replay.place_final_call, replay.following_call


def ZERO(step: Tensor, final: Tensor) -> Any:
    return FINAL(step, torch.zeros(step.numel()), final)


def _swapped(*args: Any) -> Any:
    *before, seen, bounds, to = args
    step, next_is_init, states, *rest = seen
    return FOLLOWING(*before, (step, next_is_init, torch.zeros_like(states), *rest), bounds, to)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_part_that_is_left_out_would_be_seen(mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTATIONS[mutation])
    with pytest.raises(AssertionError):
        test_planned_replay_is_that_chunk_by_chunk("clear", tmp_path)


class Louder(CLEAR):
    """A draw of its own."""

    def draw(self, *args: Any) -> Any:
        return super().draw(*args)


@pytest.mark.parametrize(
    "strategy",
    [
        {"kind": "clear", "burn_in": 1},
        {"kind": "er", "refresh": True},
        {"kind": "er", "storage": "compact"},
        {"kind": "er", "place": "host"},
        {"kind": "clear", "sampling": "prioritised"},
        {"kind": "clear", "writing": "novelty_quota"},
        {"kind": f"{__name__}:Louder"},
        "agem",
    ],
)
def test_a_replay_that_no_plan_has_is_told(strategy: Any, tmp_path: Path) -> None:
    assert "the strategy" in trainer(tmp_path, [strategy]).planned.why


def test_two_strategies_that_replay_are_told(tmp_path: Path) -> None:
    assert trainer(tmp_path, ["er", "clear"]).planned.why == "two strategies that replay"
