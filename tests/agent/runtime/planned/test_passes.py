"""Compiled passes are torch's: every gradient, with every strategy, objective and policy that they are used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import MultiDiscrete
from torch import Tensor

from lifelong.agent.config import merge
from lifelong.agent.policy import Outputs
from lifelong.agent.registry import REGISTRY
from lifelong.agent.runtime.planned.passes import CompiledPass
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.memory.tmaze import TMaze
from lifelong.replay.chunk import Chunk
from tests.agent.strategies.test_conformance import AT_WORK
from tests.agent.support import leaves, make_trainer, one_by_one

CARTPOLE = [{"name": name, "env": {"kind": "CartPole", "max_episode_steps": 7, "length": 0.5}} for name in "ab"]
PADDED = [{"name": "a", "env": {"kind": "RepeatPrevious", "symbols": 3}}, {"name": "b", "env": {"kind": "CartPole"}}]
MLP = {"kind": "mlp", "hidden": [12]}
#: what a policy, an objective or an engine may ask of a pass
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bptt": {"gradient": "bptt"},
    "encoder": {"policy": {"encoder": {"kind": "mlp", "hidden": [12, 20], "activation": "crelu"}}},
    "encoder of torch": {"policy": {"encoder": {"kind": "mlp", "hidden": [12], "activation": "silu"}}},
    "previous": {"policy": {"encoder": MLP, "previous_action": True, "previous_reward": True}},
    "padded, observed": {
        "stream": {"tasks": PADDED, "spaces": "pad", "task_id": "observed"},
        "policy": {"encoder": MLP},
    },
    "heads and critics": {
        "stream": {"tasks": PADDED, "spaces": "pad", "task_id": "observed"},
        "policy": {"heads": "per_task", "critics": "per_task", "encoder": MLP, "previous_action": True},
    },
    "gaussian": {
        "stream": {"tasks": [{"name": "p", "env": {"kind": "Pendulum", "max_episode_steps": 9}}]},
        "policy": {"encoder": MLP, "previous_action": True},
    },
    "squashed": {
        "stream": {"tasks": [{"name": "p", "env": {"kind": "Pendulum", "max_episode_steps": 9}}]},
        "policy": {"encoder": MLP, "squash": "tanh"},
    },
    "ppo": {"objective": {"kind": "ppo", "epochs": 2, "minibatches": 2}, "policy": {"encoder": MLP}},
    "q_learning": {"objective": {"kind": "q_learning"}, "strategy": [{"kind": "er", "capacity": 24, "start": 8}]},
    "supervised": {
        "stream": {"tasks": [{"name": "copy", "env": "Copy"}]},
        "objective": "supervised",
        "policy": {"encoder": MLP},
    },
    "diagonal": {"policy": {"cell": {"kind": "diagonal_gru", "size": 9}}},
    "its state": {"policy": {"cell": {"kind": "indrnn", "size": 9}, "encoder": MLP}},
    "gru": {"gradient": "bptt", "policy": {"cell": {"kind": "gru", "size": 9}, "encoder": MLP}},
    "lstm": {"gradient": "bptt", "policy": {"cell": {"kind": "lstm", "size": 9}, "previous_action": True}},
    "gru, dense engine": {"gradient": "snap1", "policy": {"cell": {"kind": "gru", "size": 5}}},
    "lstm, replay": {
        "gradient": "bptt",
        "policy": {"cell": {"kind": "lstm", "size": 9}, "encoder": MLP},
        "strategy": [{"kind": "er", "capacity": 24, "start": 8}],
    },
    "approximate engine": {"gradient": "uoro"},
    "weight decay": {"optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1}},
}


def trainer(folder: Path, **changes: Any) -> Trainer:
    common = {"stream": {"tasks": CARTPOLE, "steps_per_task": 160}, "optimizer": {"kind": "adam", "lr": 0.01}}
    made = make_trainer(folder, **merge(common, changes))
    assert not made.learner.passes.why, made.learner.passes.why
    made.planned.plan = None
    return made


def assert_alike(got: Any, wanted: Any, tolerance: float) -> None:
    a, b = dict(leaves(got)), dict(leaves(wanted))
    assert a.keys() == b.keys()
    for path, value in a.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            error = float((value - b[path]).norm() / b[path].norm().clamp(min=1e-3))
            assert error < tolerance, (path, error)


def compare(folder: Path, chunks: int, tolerance: float, **changes: Any) -> None:
    ours, plain = trainer(folder / "a", **changes), trainer(folder / "b", **changes)
    one_by_one(plain)
    for _ in range(chunks):
        ours.advance()
        plain.advance()
        gradients = [{n: p.grad for n, p in each.learner.named.items()} for each in (ours, plain)]
        assert {n for n, g in gradients[0].items() if g is None} == {n for n, g in gradients[1].items() if g is None}
    assert ours.learner.passes._kept and ours.step == plain.step
    assert_alike(*[each.shared_state()["policy"] for each in (ours, plain)], tolerance)
    assert_alike(*[each.learner.engine.state_dict() for each in (ours, plain)], tolerance)
    assert_alike(*[each.own_state()["rollout"] for each in (ours, plain)], tolerance)


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_of_torch(case: str, tmp_path: Path) -> None:
    compare(tmp_path, 8, 1e-3, **{"strategy": [{"kind": "l2_init", "strength": 0.01}], **CASES[case]})


class Categories(TMaze):
    """A maze whose observations are two numbers of four categories."""

    def spaces(self) -> tuple[Any, Any]:
        return MultiDiscrete([4, 4]), super().spaces()[1]

    def observe(self, state: Any) -> Tensor:
        return (super().observe(state)[:, :2].abs() * 3).long()


def test_categories_that_are_stored_as_bytes_are_read_as_categories(tmp_path: Path) -> None:
    """As EnvPool's views come."""
    tasks = [{"name": "a", "env": {"kind": f"{__name__}:Categories"}}]
    changes = {"stream": {"tasks": tasks}, "policy": {"encoder": MLP}, "strategy": [{"kind": "l2_init"}]}
    ours, plain = (trainer(tmp_path / name, **changes) for name in "ab")
    one_by_one(plain)
    for made in (ours, plain):
        assert made.rollout.policy.encoder.counts
        for _ in range(4):
            made.follow_stream()
            experience = made.rollout.collect(4)
            experience.chunk.obs = experience.chunk.obs.to(torch.uint8)
            made.learner.update(made.context(), experience)
    assert_alike(*[each.shared_state()["policy"] for each in (ours, plain)], 1e-3)


@pytest.mark.parametrize("name", REGISTRY["strategy"])
def test_a_run_with_a_strategy_is_that_of_torch(name: str, tmp_path: Path) -> None:
    """Over the border of two tasks, two chunks into the second one."""
    compare(tmp_path, 7, 2e-3, strategy=[{"kind": name, **AT_WORK.get(name, {})}], policy={"encoder": MLP})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policy": {"cell": "rnn"}, "gradient": "bptt"}, "RNN"),
        ({"objective": "ac_lambda", "rollout": {"steps": 1}, "max_grad_norm": 0.0}, "ACLambda"),
        ({"strategy": [f"{__name__}:Own"]}, "Own, which is not ours"),
        ({"policy": {"weight_drop": 0.3, "cell": "rnn"}, "gradient": "bptt"}, "weight_drop"),
    ],
)
def test_what_keeps_a_policy_from_compiled_passes_is_told(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    assert named in make_trainer(tmp_path, **changes).learner.passes.why


class Own(Strategy):
    """A strategy of the user's, with a gradient of its own."""

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor:
        weight = ctx.policy.cell.get_parameter("weight_input")
        (slope,) = torch.autograd.grad(outputs.value.sum(), weight, retain_graph=True)
        return 1e-3 * (slope * weight).sum()


def test_a_strategy_of_the_users_own_reaches_the_parameters_from_the_outputs(tmp_path: Path) -> None:
    made = make_trainer(tmp_path, strategy=[f"{__name__}:Own"])
    made.advance()
    assert made.learner.steps == 1


MUTATIONS = ["stale weights", "reset missed", "carry left out", "features left out", "old gradient", "other slopes"]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_pass_that_is_wrong_somewhere_would_be_seen(mutation: str, tmp_path: Path, monkeypatch: Any) -> None:
    sequence, backward = CompiledPass.sequence, CompiledPass.backward

    def broken_sequence(self: CompiledPass, *arguments: Any) -> Any:
        if mutation == "stale weights" and hasattr(self, "read_leaf"):
            self._forward.run = lambda *_: None  # type: ignore[method-assign]
        outputs = sequence(self, *arguments)
        if mutation == "reset missed":
            self.is_init_TB.zero_()
        return outputs

    def broken_backward(self: CompiledPass) -> None:
        if mutation == "carry left out":
            self.state = self.state.detach()
        elif mutation == "features left out":
            self.y_leaf.grad = None
        elif mutation == "old gradient":
            before = getattr(self, "before", torch.zeros(()))
            backward(self)
            self.gradients.flat.add_(before, alpha=0.1)
            self.before = self.gradients.flat.clone()
            return
        elif mutation == "other slopes":
            assert self.read_leaf.grad is not None
            self.read_leaf.grad *= 0.9
        backward(self)

    monkeypatch.setattr(CompiledPass, "sequence", broken_sequence)
    monkeypatch.setattr(CompiledPass, "backward", broken_backward)
    with pytest.raises(AssertionError):
        compare(tmp_path, 8, 1e-3, strategy=[{"kind": "activity", "alpha": 1.0}], policy={"encoder": MLP})
