"""The lane is the way through `OutsideRollout`: actions, parameters, carry, memory and what is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.agent.errors import LifelongError, NonFiniteError
from lifelong.agent.online import OnlineAgent
from lifelong.agent.runtime.planned.lane import LiveRows, refusal
from tests.agent.support import assert_identical, leaves
from tests.agent.test_online import SPACES, World, agent_for, config

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


def state(world: World | Batch, folder: Path) -> dict[str, Any]:
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
        ({"copies": 3, **CASES["streaming"]}, "traces of several copies"),
        ({"strategy": [{"kind": "clear", "capacity": 16, "start": 8}]}, "CLEAR"),
        ({"optimizer": {"kind": "adam", "lr": {"from": 0.1, "to": 0.0, "over": 9}}}, "change"),
        ({"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}}, "optimiser"),
    ],
)
def test_who_is_kept_out_of_the_lane(changes: dict[str, Any], named: str) -> None:
    agent = agent_for(**changes)
    assert agent._lane is None and named in str(refusal(agent._trainer))


# ---- a batch, and actions that are numbers ---------------------------------------------------------------------------

MOVES = Box(-10, 10, (3,), np.float32), Box(-1.0, 2.0, (2,), np.float32)


class Batch:
    """Steps copies in environments that are formulas, whose episodes end at different times, terminated or truncated.

    Args:
        agent: with copies, or with one environment.
        given: the last observations are given apart (the same-step autoreset of Gymnasium), else the next call has the
            first ones.
    """

    def __init__(self, agent: OnlineAgent, *, given: bool = False) -> None:
        self.agent, self.given, self.t = agent, given, 0
        self.lead = (agent._copies,) if agent._copies else ()

    def outcome(self) -> tuple[Any, ...]:
        t, copies = self.t, np.arange(*self.lead or (1,))
        obs = np.sin(t * (copies[:, None] + 1) + np.arange(3)).astype(np.float32)
        reward, end = np.cos(t + copies), (t + 2 * copies) % 7 == 6
        terminated = end & ((t + copies) % 2 == 0)
        parts = obs, reward, terminated, end & ~terminated
        return parts if self.lead else tuple(part[0] for part in parts)

    def run(self, steps: int) -> np.ndarray:
        """The actions."""
        made = []
        for _ in range(steps):
            obs, *outcome = self.outcome()
            apart = {"final_obs": obs + 0.5} if self.given and np.any(outcome[1:]) else {}
            action = self.agent.act(obs, *outcome, **apart) if self.t else self.agent.act(obs)
            made.append(self.agent.act(obs) if action is None else action)
            self.t += 1
        return np.array(made)


BATCHES: dict[str, dict[str, Any]] = {
    "every step": {"rollout": {"steps": 1}},
    "some steps": {"rollout": {"steps": 4}},
    "previous": {"policy": {"encoder": MLP, "cell": CELL, "previous_action": True, "previous_reward": True}},
    "gru": {"policy": {"encoder": MLP, "cell": {"kind": "gru", "size": 6}}, "gradient": "bptt"},
    "ppo": {"objective": {"kind": "ppo", "epochs": 2, "minibatches": 3}, "rollout": {"steps": 6}},
    "one": {"copies": 1},
}
SPACE = {"categories": SPACES, "moves": MOVES}


def batch(space: str = "categories", *, given: bool = False, copies: int | None = 3, **changes: Any) -> Batch:
    return Batch(OnlineAgent(*SPACE[space], config(**changes), copies=copies), given=given)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("space", SPACE)
@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_lives_in_the_lane_as_outside_of_it(case: str, space: str, given: bool, tmp_path: Path) -> None:
    ours, other = (batch(space, given=given, **BATCHES[case]) for _ in range(2))
    slow(other.agent)
    lived = 0
    for _ in range(13):
        np.testing.assert_allclose(ours.run(4), other.run(4), rtol=1e-3, atol=1e-4)
        assert ours.agent._lane is not None
        lived += ours.agent._lane.running
    assert lived >= (1 if case == "ppo" and not given else 12)  # where an episode ended, PPO's chunk is no single call
    assert_close(state(ours, tmp_path), state(other, tmp_path), 1e-3)
    reported, expected = ours.agent.report(), other.agent.report()
    assert reported.keys() == expected.keys()
    for name, value in reported.items():
        assert value == pytest.approx(expected[name], rel=2e-3, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("space", SPACE)
def test_moves_of_one_environment(space: str, tmp_path: Path) -> None:
    ours, other = (batch(space, copies=None, **CASES["previous"]) for _ in range(2))
    slow(other.agent)
    np.testing.assert_allclose(ours.run(50), other.run(50), rtol=1e-3, atol=1e-4)
    assert ours.agent._lane is not None and ours.agent._lane.running
    assert_close(state(ours, tmp_path), state(other, tmp_path), 1e-3)


@pytest.mark.parametrize("case", ["some steps", "previous", "gru"])
@pytest.mark.parametrize("space", SPACE)
def test_a_batch_that_is_saved_at_any_step_goes_on_to_the_bit(space: str, case: str, tmp_path: Path) -> None:
    for steps in range(21, 30):
        ours = batch(space, **BATCHES[case])
        ours.run(steps)
        ours.agent.save(tmp_path / "agent.pt")
        loaded = Batch(OnlineAgent.load(tmp_path / "agent.pt"))
        assert loaded.agent._lane is not None and loaded.agent._lane.running
        loaded.t = ours.t
        assert np.array_equal(loaded.run(20), ours.run(20))
        assert_identical(*[state(each, tmp_path) for each in (loaded, ours)])


@pytest.mark.parametrize("mutation", ["weight", "total", "over", "episode"])
def test_a_batch_in_a_lane_that_is_wrong_somewhere_would_be_seen(
    mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = LiveRows.hear

    def heard(self: LiveRows, t: int, *arguments: Any) -> None:
        hear(self, t, *arguments)
        if mutation == "weight":
            self._weight[t] = 1
        elif mutation == "total":
            self._whole = True
        elif mutation == "over":
            self.over = None
        elif mutation == "episode":
            self.returned[0] = 0

    monkeypatch.setattr(LiveRows, "hear", heard)
    with pytest.raises((AssertionError, LifelongError)):
        test_a_batch_lives_in_the_lane_as_outside_of_it("some steps", "categories", False, tmp_path)


MUTATIONS = ["shift", "weights", "reset", "last observation", "previous", "carry", "noise"]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_lane_that_is_wrong_somewhere_would_be_seen(mutation: str, tmp_path: Path, monkeypatch: Any) -> None:
    make, hear, decide = LiveRows.__init__, LiveRows.hear, LiveRows.decide

    def made(self: LiveRows, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
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
