"""Planned chunks are the chunks one by one: parameters, optimiser, carry, memory, environments and randomness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.config import merge
from lifelong.agent.errors import LifelongError
from lifelong.agent.runtime.finite import NotFinite
from lifelong.agent.runtime.planned import plan
from lifelong.agent.runtime.trainer import Trainer
from tests.agent.support import assert_identical, leaves, make_trainer, one_by_one, run

CARTPOLE = [{"name": "a", "env": {"kind": "CartPole", "max_episode_steps": 11}}]
SCALED = [{"name": "a", "env": {"kind": "CartPole", "max_episode_steps": 11}, "reward_scale": 0.1}]
PADDED = [{"name": "a", "env": {"kind": "RepeatPrevious", "symbols": 3}}, {"name": "b", "env": {"kind": "CartPole"}}]
PENDULUM = [{"name": "a", "env": {"kind": "Pendulum", "max_episode_steps": 11}}]
MLP = {"kind": "mlp", "hidden": [12]}
DEEP = {"kind": "mlp", "hidden": [12, 20], "activation": "crelu"}
ONE: dict[str, Any] = {
    "stream": {"tasks": CARTPOLE},
    "rollout": {"copies": 1, "steps": 1},
    "max_grad_norm": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "narrow": {"stream": {"tasks": CARTPOLE}},
    "one copy, one step": {"stream": {"tasks": CARTPOLE}, "rollout": {"copies": 1, "steps": 1}},
    "bptt": {"stream": {"tasks": CARTPOLE}, "gradient": "bptt"},
    "encoder": {"stream": {"tasks": CARTPOLE}, "policy": {"encoder": MLP}},
    "wide": {"stream": {"tasks": CARTPOLE}, "policy": {"encoder": DEEP}},
    "wide, bptt": {"stream": {"tasks": CARTPOLE}, "policy": {"encoder": DEEP}, "gradient": "bptt"},
    "diagonal": {
        "stream": {"tasks": CARTPOLE},
        "policy": {"encoder": MLP, "cell": {"kind": "diagonal_gru", "size": 9}},
    },
    "its state": {"stream": {"tasks": CARTPOLE}, "policy": {"encoder": DEEP, "cell": {"kind": "indrnn", "size": 9}}},
    "gru": {
        "stream": {"tasks": CARTPOLE},
        "gradient": "bptt",
        "policy": {"encoder": MLP, "cell": {"kind": "gru", "size": 9}},
    },
    "lstm": {
        "stream": {"tasks": CARTPOLE},
        "gradient": "bptt",
        "policy": {"cell": {"kind": "lstm", "size": 9}, "previous_action": True},
    },
    "ppo, gru": {
        "stream": {"tasks": CARTPOLE},
        "gradient": "bptt",
        "policy": {"cell": {"kind": "gru", "size": 9}},
        "objective": {"kind": "ppo", "epochs": 2, "minibatches": 4},
    },
    "ppo, lstm": {
        "stream": {"tasks": CARTPOLE},
        "gradient": "bptt",
        "policy": {"encoder": MLP, "cell": {"kind": "lstm", "size": 9}},
        "objective": {"kind": "ppo", "epochs": 2, "minibatches": 2},
    },
    "previous": {
        "stream": {"tasks": SCALED},
        "policy": {"previous_action": True, "previous_reward": True, "encoder": MLP},
    },
    "padded": {"stream": {"tasks": PADDED, "spaces": "pad"}, "policy": {"encoder": MLP, "previous_action": True}},
    "observed": {"stream": {"tasks": PADDED, "spaces": "pad", "task_id": "observed"}, "policy": {"encoder": MLP}},
    "ppo": {"stream": {"tasks": CARTPOLE}, "objective": {"kind": "ppo", "epochs": 3, "minibatches": 4}},
    "ppo, encoder": {
        "stream": {"tasks": CARTPOLE},
        "policy": {"encoder": DEEP, "previous_action": True},
        "objective": {"kind": "ppo", "epochs": 2, "minibatches": 2},
    },
    "gaussian": {"stream": {"tasks": PENDULUM}, "policy": {"encoder": MLP, "previous_action": True}},
    "gaussian, bptt": {"stream": {"tasks": PENDULUM}, "gradient": "bptt"},
    "gaussian, streaming": {
        **ONE,
        "stream": {"tasks": PENDULUM},
        "objective": {"kind": "ac_lambda", "entropy_weight": 0.1},
        "optimizer": {"kind": "obgd", "kappa": 3.0},
    },
    "ppo, gaussian": {
        "stream": {"tasks": PENDULUM},
        "policy": {"encoder": MLP},
        "objective": {"kind": "ppo", "epochs": 2, "minibatches": 2},
    },
    "ppo, one batch": {
        "stream": {"tasks": CARTPOLE},
        "policy": {"encoder": MLP, "cell": {"kind": "diagonal_gru", "size": 9}},
        "objective": {"kind": "ppo", "epochs": 2, "minibatches": 1, "normalize_advantage": False},
    },
    "ppo, bptt": {
        "stream": {"tasks": CARTPOLE},
        "gradient": "bptt",
        "objective": {"kind": "ppo", "epochs": 2, "minibatches": 8},
    },
    "ppo, padded": {
        "stream": {"tasks": PADDED, "spaces": "pad", "task_id": "observed"},
        "policy": {"encoder": MLP},
        "objective": {"kind": "ppo", "epochs": 2, "minibatches": 2},
    },
    "sgd": {"stream": {"tasks": CARTPOLE}, "optimizer": {"kind": "sgd", "lr": 0.1, "weight_decay": 0.01}},
    "streaming": {
        **ONE,
        "policy": {"encoder": MLP},
        "objective": {"kind": "ac_lambda", "entropy_weight": 0.1},
        "optimizer": {"kind": "obgd", "kappa": 3.0},
    },
    "streaming, bptt": {
        **ONE,
        "gradient": "bptt",
        "policy": {"cell": {"kind": "lstm", "size": 5}, "previous_action": True},
        "objective": {"kind": "ac_lambda", "gamma": 1, "lam": 0.8},
    },
    "schedules": {
        "stream": {"tasks": CARTPOLE},
        "optimizer": {"kind": "adam", "lr": {"from": 0.02, "to": 0.001, "over": 300}},
        "objective": {"kind": "actor_critic", "entropy_weight": {"from": 0.1, "to": 0.0, "over": 200}},
    },
    "ppo, schedules": {
        "stream": {"tasks": CARTPOLE},
        "optimizer": {"kind": "adam", "lr": {"from": 0.02, "to": 0.001, "over": 300}},
        "objective": {"kind": "ppo", "epochs": 2, "minibatches": 2, "clip": {"from": 0.3, "to": 0.01, "over": 200}},
    },
    "adamw": {"stream": {"tasks": CARTPOLE}, "optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1}},
}


def trainer(folder: Path, case: str, planned: bool = True, **changes: Any) -> Trainer:
    """After two chunks one by one, which the optimiser's state and resets in the carry need."""
    common: dict[str, Any] = {"optimizer": {"kind": "adam", "lr": 0.01}, "log_every": 100_000, "gradient": "rtrl"}
    made = make_trainer(folder, **merge({"stream": {"steps_per_task": 4000}}, {**common, **CASES[case], **changes}))
    assert made.planned.plan is not None, made.planned.why
    keep = made.planned.plan
    one_by_one(made)
    for _ in range(2):
        made.advance()
    made.planned.plan = keep if planned else None
    return made


def state(made: Trainer) -> dict[str, Any]:
    return {**made.shared_state(), **made.own_state()}


def assert_close(got: Any, wanted: Any, tolerance: float) -> None:
    """Floats agree relative to the size of their tensor, all else exactly."""
    a, b = dict(leaves(got)), dict(leaves(wanted))
    assert a.keys() == b.keys()
    for path, value in a.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            value, wanted_value = value.nan_to_num(), b[path].nan_to_num()  # the spread of one number is none
            error = float((value - wanted_value).norm() / wanted_value.norm().clamp(min=1e-6))
            assert error < tolerance, (path, error)
        elif isinstance(value, Tensor):
            assert torch.equal(value, b[path]), path
        elif not isinstance(value, float):
            assert value == b[path], path


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_rounds_are_the_chunks_one_by_one(case: str, rounds: int, tmp_path: Path) -> None:
    rounds = 1 if case.startswith("ppo") or case == "schedules" else rounds
    planned, eager = trainer(tmp_path / "a", case), trainer(tmp_path / "b", case, planned=False)
    planned.planned.rounds = lambda trainer: rounds  # type: ignore[method-assign]
    ended = 0
    for _ in range(6 // rounds):
        experience = planned.advance()
        assert planned.planned.plan is not None and planned.planned.plan.kept
        for _ in range(rounds):
            expected = eager.advance()
            assert expected is not None
            ended += int(expected.chunk.truncated.sum())
        assert experience is not None and planned.step == eager.step
        assert_close(
            vars(experience.chunk) | {"final_step": 0, "final_obs": 0},
            vars(expected.chunk) | {"final_step": 0, "final_obs": 0},
            1e-4,
        )
    assert_close(state(planned), state(eager), 3e-4)
    assert_close(planned.record.flush(), eager.record.flush(), 1e-4)
    if case == "narrow":
        assert ended


@pytest.mark.parametrize("case", ["narrow", "one copy, one step", "wide", "previous"])
def test_how_many_rounds_are_made_at_once_changes_no_bit(case: str, tmp_path: Path) -> None:
    states = []
    for rounds in (1, 2, 6):
        made = trainer(tmp_path / str(rounds), case)
        made.planned.rounds = lambda trainer, rounds=rounds: rounds  # type: ignore[misc,method-assign]
        for _ in range(6 // rounds):
            made.advance()
        states.append(state(made))
        if case.startswith("one"):  # the spread of one number is none
            states[-1]["record"].pop("sums")
    for other in states[1:]:
        assert_identical(other, states[0])


def test_rounds_end_where_something_is_due(tmp_path: Path) -> None:
    tasks = [{"name": name, "env": {"kind": "CartPole", "length": length}} for name, length in (("a", 0.5), ("b", 0.8))]
    due = {"log_every": 3 * 32, "evaluation": {"every": 5 * 32, "episodes": 2, "max_steps": 4}}
    made = make_trainer(tmp_path, stream={"tasks": tasks, "steps_per_task": 7 * 32}, **due)
    seen = []
    advance = made.planned.advance

    def remember(trainer: Trainer) -> Any:
        result = advance(trainer)
        seen.append(trainer.step // 32)
        return result

    made.planned.advance = remember  # type: ignore[method-assign]
    run(made)
    assert made.step == 14 * 32
    assert seen == [0, 3, 5, 6, 7, 9, 10, 12, 14]  # the first chunk is made by hand


def test_a_run_that_is_stopped_and_resumed_is_that_of_one_piece(tmp_path: Path) -> None:
    whole, first, second = (make_trainer(tmp_path / name, log_every=96, checkpoint={"every": 64}) for name in "abc")
    run(whole)
    run(first, until=160)
    assert 160 <= first.step < whole.step
    second.load_state_dict(first.state_dict())
    run(second)
    assert_identical(second.state_dict(), whole.state_dict())
    assert whole.planned.plan is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"strategy": "gpm"}, "GPM"),
        ({"strategy": {"kind": "ewc", "every": 64}, "stream": {"boundaries": "hidden"}}, "EWC"),
        ({"strategy": "agem"}, "AGEM"),
        ({"objective": "q_learning"}, "QLearning"),
        ({"objective": {"kind": "ppo", "minibatches": 3}}, "minibatches"),
        ({"policy": {"cell": {"kind": "diagonal_lstm", "size": 4}}}, "DiagonalLSTM"),
        ({"policy": {"heads": "per_task"}}, "heads"),
        ({"stream": {"tasks": PENDULUM}, "policy": {"squash": "tanh"}}, "action space"),
        ({"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}}, "optimiser"),
        ({"objective": "ac_lambda", "rollout": {"copies": 2, "steps": 1}, "max_grad_norm": 0}, "traces"),
        ({"gradient": {"kind": "rtrl", "carry_dtype": "bfloat16"}}, "bfloat16"),
        ({"policy": {"encoder": {"kind": "mlp", "norm": "layer"}}}, "encoder"),
        ({"policy": {"encoder": {"kind": "mlp", "norm": "weight"}}}, "encoder"),
        ({"rollout": {"initial_state": "noise"}, "gradient": "bptt"}, "initial_state"),
        (
            {"strategy": "hypernet", "gradient": "bptt", "policy": {"encoder": {"kind": "mlp", "hidden": [5]}}},
            "hypernet",
        ),
    ],
)
def test_what_keeps_a_run_from_having_a_plan_is_told(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    made = make_trainer(tmp_path, **changes)
    assert made.planned.plan is None and named.lower() in made.planned.why.lower()


@pytest.mark.parametrize("case", ["encoder", "ppo, encoder"])
def test_numbers_that_are_not_finite_end_the_program_before_its_step(case: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, case)
    with torch.no_grad():
        made.rollout.policy.critic.bias.fill_(float("inf"))
    before = {name: value.clone() for name, value in made.learner.named.items()}
    assert made.planned.plan is not None
    with pytest.raises(NotFinite):
        made.planned.plan.run(3 if case == "encoder" else 1, made.step)
    for name, value in made.learner.named.items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("every", [0, 64])
def test_a_hook_that_does_nothing_keeps_no_run_from_a_plan(every: int, tmp_path: Path) -> None:
    strategy = [{"kind": "reset_on_task", "every": every}]
    planned, eager = (make_trainer(tmp_path / name, strategy=strategy, log_every=10_000) for name in "ab")
    assert (planned.planned.plan is None) == bool(every)
    one_by_one(eager)
    run(planned)
    run(eager)
    assert planned.strategies[0].report()["resets"] == eager.strategies[0].report()["resets"] > 0
    assert_close(planned.shared_state()["policy"], eager.shared_state()["policy"], 1e-2)


MUTATIONS = ["pack", "carry", "gradient left over", "reset", "bootstrap", "final", "slope", "step"]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_plan_that_is_wrong_somewhere_would_be_seen(mutation: str, tmp_path: Path, monkeypatch: Any) -> None:
    """What the comparison above is worth: every part left out, or done with stale data, shows."""
    make = plan.Rounds.__init__

    def broken(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        pack, act, bootstrap, final, learn, step = self.segments
        names = [getattr(call, "entry", None) and call.entry.__name__ for call in learn.calls]

        def without(name: str) -> Any:
            kept = [call for call, its in zip(learn.calls, names, strict=True) if not (its or "").startswith(name)]
            assert len(kept) < len(learn.calls)
            return learn._replace(calls=kept)

        if mutation == "pack":  # stale weights
            pack = pack._replace(calls=pack.calls[:-4])
        elif mutation == "carry":
            learn = without("recurrence_narrow")
        elif mutation == "gradient left over":
            learn = without("clear")
        elif mutation == "reset":
            begin, init = self.acted.begin, self.acted.made.is_init
            self.acted.begin = lambda: (begin(), init[0].logical_not_())
        elif mutation == "bootstrap":
            bootstrap = bootstrap._replace(calls=[])
        elif mutation == "final":
            final = final._replace(calls=[])
        elif mutation == "slope":
            learn = without("log_prob_backward")
        elif mutation == "step":
            step = step._replace(calls=[])
        self.segments = [pack, act, bootstrap, final, learn, step]

    monkeypatch.setattr(plan.Rounds, "__init__", broken)
    with pytest.raises((AssertionError, LifelongError)):
        test_rounds_are_the_chunks_one_by_one("narrow", 3, tmp_path)
