"""The lane is the way through `OutsideRollout`: actions, parameters, carry, memory and what is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.agent.errors import LifelongError, NonFiniteError
from lifelong.agent.online import OnlineAgent
from lifelong.agent.runtime.planned.lane import LiveRows, refusal
from tests.agent.support import assert_identical, leaves
from tests.agent.test_online import World, agent_for

MLP = {"kind": "mlp", "hidden": [12, 9], "activation": "crelu"}
CELL = {"kind": "elstm", "size": 6}
CASES: dict[str, dict[str, Any]] = {
    "every step": {"rollout": {"steps": 1}},
    "some steps": {"rollout": {"steps": 4}},
    "bptt": {"rollout": {"steps": 3}, "gradient": "bptt"},
    "encoder": {"policy": {"encoder": MLP, "cell": CELL}, "rollout": {"steps": 5}},
    "previous": {"policy": {"encoder": MLP, "cell": CELL, "previous_action": True, "previous_reward": True}},
    "diagonal": {"policy": {"encoder": MLP, "cell": {"kind": "diagonal_gru", "size": 7}, "previous_reward": True}},
    "streaming": {
        "objective": {"kind": "ac_lambda", "entropy_weight": 0.1},
        "optimizer": {"kind": "obgd"},
        "rollout": {"steps": 1},
        "max_grad_norm": 0,
    },
    "sgd": {"optimizer": {"kind": "sgd", "lr": 0.1}},
    "gru": {"policy": {"encoder": MLP, "cell": {"kind": "gru", "size": 6}}, "gradient": "bptt"},
    "lstm": {"policy": {"cell": {"kind": "lstm", "size": 6}, "previous_reward": True}, "gradient": "bptt"},
    "ppo": {"objective": {"kind": "ppo", "epochs": 3, "minibatches": 1}, "rollout": {"steps": 6}},
    "strategies": {"strategy": ["trac", {"kind": "l2_init", "strength": 0.1}, "weight_clipping"]},
    "explore": {"strategy": [{"kind": "explore", "every": 16, "steps": 9}]},
    "adamw": {"optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1}},
}


def slow(agent: OnlineAgent) -> OnlineAgent:
    """The agent, without its lane."""
    agent._lane = None
    return agent


def worlds(**changes: Any) -> tuple[World, World]:
    ours, other = World(agent_for(**changes)), World(slow(agent_for(**changes)))
    assert ours.agent._lane is not None
    return ours, other


def state(world: World, folder: Path) -> dict[str, Any]:
    world.agent.save(folder / "agent.pt")
    saved: dict[str, Any] = torch.load(folder / "agent.pt", weights_only=True)
    return {name: value for name, value in saved.items() if name not in ("agent", "versions")}


def assert_close(got: Any, wanted: Any, tolerance: float) -> None:
    a, b = dict(leaves(got)), dict(leaves(wanted))
    assert a.keys() == b.keys()
    for path, value in a.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            value, other = value.nan_to_num(), b[path].nan_to_num()  # the spread of one number is none
            error = float((value - other).norm() / other.norm().clamp(min=1e-3))
            assert error < tolerance, (path, error)
        elif isinstance(value, Tensor):
            assert torch.equal(value, b[path]), path


def compare(folder: Path, steps: int, **changes: Any) -> None:
    ours, other = worlds(**changes)
    assert ours.run(steps) == other.run(steps)
    assert ours.agent._lane is not None and ours.agent._lane.running
    assert_close(state(ours, folder), state(other, folder), 1e-3)
    reported, expected = ours.agent.report(), other.agent.report()
    assert reported.keys() == expected.keys()
    for name, value in reported.items():
        assert value == pytest.approx(expected[name], rel=2e-3, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("case", CASES)
def test_an_agent_lives_in_the_lane_as_outside_of_it(case: str, tmp_path: Path) -> None:
    compare(tmp_path, 59, **CASES[case])


@pytest.mark.parametrize(
    "case", ["every step", "some steps", "previous", "lstm", "strategies", "explore", "streaming", "ppo"]
)
def test_saved_at_any_step_it_goes_on_to_the_bit(case: str, tmp_path: Path) -> None:
    for steps in (*range(21, 30), 43):
        world = World(agent_for(**CASES[case]))
        world.run(steps)
        world.agent.save(tmp_path / "agent.pt")
        loaded = World(OnlineAgent.load(tmp_path / "agent.pt"))
        assert loaded.agent._lane is not None and loaded.agent._lane.running
        loaded.t, loaded.action = world.t, world.action
        assert loaded.run(40) == world.run(40)
        ends = [state(each, tmp_path) for each in (loaded, world)]
        for end in ends:
            end["record"]["sums"].pop("loss/explained_variance", None)  # none, of one step
        assert_identical(*ends)


def test_an_episode_whose_last_observation_is_given_apart(tmp_path: Path) -> None:
    agents, actions = [agent_for(), slow(agent_for())], []
    for agent in agents:
        drawn, random = [agent.act(np.zeros(3, np.float32))], np.random.default_rng(0)
        for t in range(40):
            obs, last = random.normal(size=(2, 3)).astype(np.float32)
            done = t % 6 == 5
            drawn.append(agent.act(obs, 0.5, truncated=done, final_obs=last if done else None))
        agent.save(tmp_path / "agent.pt")
        actions.append(drawn)
    assert actions[0] == actions[1]
    assert_close(*[agent._trainer.shared_state()["policy"] for agent in agents], 1e-3)


@pytest.mark.parametrize("at", [21, 22, 24, 28])
def test_what_is_unusual_happens_outside_of_the_lane(at: int, tmp_path: Path) -> None:
    changes = {"stream": {"boundaries": "given"}, "tasks": ["a", "b"]}
    pair = worlds(**changes)
    seen = []
    for world in pair:
        done = [*world.run(at)]
        world.agent.reset_memory()
        done += world.run(9)
        world.agent.freeze()
        done += world.run(9)
        world.agent.learn()
        done += world.run(9)
        world.agent.boundary("b")
        seen.append([*done, *world.run(19)])
    assert seen[0] == seen[1]
    assert pair[0].agent._lane is not None and pair[0].agent._lane.running
    assert_close(*[state(world, tmp_path) for world in pair], 1e-3)


FROZEN = ["every step", "some steps", "bptt", "previous", "streaming", "ppo"]


@pytest.mark.parametrize("case", FROZEN)
def test_an_agent_that_is_frozen_lives_in_the_lane_and_learns_again_there(case: str, tmp_path: Path) -> None:
    pair, seen, states = worlds(**CASES[case]), [], []
    for world in pair:
        done = world.run(22)
        world.agent.freeze()
        before = {name: p.detach().clone() for name, p in world.agent._trainer.learner.named.items()}
        done += world.run(30)
        assert all(torch.equal(p, before[name]) for name, p in world.agent._trainer.learner.named.items())
        if world is pair[0]:
            assert world.agent._lane is not None and world.agent._lane.running
        states.append(state(world, tmp_path))
        world.agent.learn()
        seen.append([*done, *world.run(21)])
        assert any(not torch.equal(p, before[name]) for name, p in world.agent._trainer.learner.named.items())
    assert seen[0] == seen[1]
    assert_close(*states, 1e-3)
    assert_close(*[state(world, tmp_path) for world in pair], 1e-3)


def test_an_agent_that_never_learned_is_in_the_lane_once_it_is_frozen(tmp_path: Path) -> None:
    pair, seen = worlds(), []
    for world in pair:
        world.agent.freeze()
        done = world.run(9)
        assert world.agent._lane is None or world.agent._lane.running
        world.agent.save(tmp_path / "agent.pt")
        loaded = World(OnlineAgent.load(tmp_path / "agent.pt"))
        loaded.t, loaded.action = world.t, world.action
        assert world.agent._lane is None or (loaded.agent._lane is not None and loaded.agent._lane.running)
        following = world.run(10)
        assert loaded.run(10) == following
        world.agent.learn()
        assert world.agent._lane is None or not world.agent._lane.running  # the optimiser has nothing yet
        seen.append([*done, *following, *world.run(30)])
    assert seen[0] == seen[1]
    assert pair[0].agent._lane is not None and pair[0].agent._lane.running
    assert_close(*[state(world, tmp_path) for world in pair], 1e-3)


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_numbers_that_are_not_finite_are_not_learned_from(policy: str, tmp_path: Path) -> None:
    pair = worlds(on_nonfinite=policy)
    states = []
    for world in pair:
        world.run(22)
        before = {name: p.detach().clone() for name, p in world.agent._trainer.learner.named.items()}
        agent = world.agent
        try:
            for _ in range(4):
                agent.act(world.obs(), 3e38)
        except NonFiniteError:
            assert policy == "stop"
            agent.act(world.obs())
        for name, parameter in agent._trainer.learner.named.items():
            if policy == "stop":
                assert torch.equal(parameter, before[name])
            assert bool(parameter.isfinite().all())
        for _ in range(20):
            agent.act(world.obs(), 1.0)
        assert not agent._trainer.learner.engine.state_dict()["weight"].isnan().any()
        states.append(agent._trainer.record.skipped)
    assert states[0] == states[1] and bool(states[0]) == (policy == "skip")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"copies": 3}, "several environments"),
        ({"strategy": [{"kind": "clear", "capacity": 16, "start": 8}]}, "CLEAR"),
        ({"optimizer": {"kind": "adam", "lr": {"from": 0.1, "to": 0.0, "over": 9}}}, "change"),
        ({"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}}, "optimiser"),
    ],
)
def test_who_is_kept_out_of_the_lane(changes: dict[str, Any], named: str) -> None:
    agent = agent_for(**changes)
    assert agent._lane is None and named in str(refusal(agent._trainer))


MUTATIONS = ["shift", "weights", "reset", "last observation", "previous", "carry", "noise"]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_lane_that_is_wrong_somewhere_would_be_seen(mutation: str, tmp_path: Path, monkeypatch: Any) -> None:
    make, hear, decide = LiveRows.__init__, LiveRows.hear, LiveRows.decide

    def made(self: LiveRows, *arguments: Any) -> None:
        make(self, *arguments)
        calls: Any = self
        if mutation == "shift":
            calls._shift.run = lambda *_: None
        elif mutation == "previous":
            calls._after.run = lambda *_: None
        elif mutation == "carry":
            learn = calls._learn.run
            weight = calls.learner.engine.state_dict()["weight"]
            calls._learn = type("Learn", (), {"run": lambda _: (learn(), weight.mul_(0.9))[0]})()

    def heard(self: LiveRows, t: int, *arguments: Any) -> None:
        hear(self, t, *arguments)
        if mutation == "reset":
            self._init[t + 1] = False
        elif mutation == "last observation":
            self._final[t] = 0.0

    def decided(self: LiveRows, t: int) -> None:
        self._packed = self._packed or (mutation == "weights" and self.returned[0] > 0)
        decide(self, t)
        if mutation == "noise":
            torch.rand(1, generator=self.rollout.generator)

    monkeypatch.setattr(LiveRows, "__init__", made)
    monkeypatch.setattr(LiveRows, "hear", heard)
    monkeypatch.setattr(LiveRows, "decide", decided)
    with pytest.raises((AssertionError, LifelongError)):
        compare(tmp_path, 59, **CASES["previous"])
