"""Acting in compiled calls is acting step by step, for every policy that has such calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.runtime.planned.acting import compiled
from lifelong.agent.runtime.rollout import Rollout
from tests.agent.support import leaves, make_rollout, policy_for, task_env

CARTPOLE = {"kind": "CartPole", "max_episode_steps": 12}
MEMORY = {"kind": "RepeatPrevious", "lag": 1, "symbols": 3}
PENDULUM = {"kind": "Pendulum", "max_episode_steps": 9}
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "encoder": ([CARTPOLE], {"encoder": {"kind": "mlp", "hidden": [20, 9], "activation": "relu"}}),
    "crelu": ([MEMORY], {"encoder": {"kind": "mlp", "hidden": [8], "activation": "crelu"}}),
    "previous": ([CARTPOLE], {"previous_action": True, "previous_reward": True}),
    "tasks": (
        [CARTPOLE, {**CARTPOLE, "gravity": 5.0}],
        {"heads": "per_task", "critics": "per_task", "task_observed": True},
    ),
    "gaussian": (
        [PENDULUM],
        {"encoder": {"kind": "mlp", "hidden": [8]}, "previous_action": True, "previous_reward": True},
    ),
    "padded": ([CARTPOLE, MEMORY], {"encoder": {"kind": "mlp", "hidden": [8]}, "previous_action": True}),
    "diagonal": ([CARTPOLE], {"cell": "diagonal_gru", "size": 12, "encoder": {"kind": "mlp", "hidden": [8]}}),
    "block": ([MEMORY], {"cell": "diagonal_lstm", "size": 12}),
    "gru": ([CARTPOLE], {"cell": "gru", "size": 12, "encoder": {"kind": "mlp", "hidden": [8]}}),
    "lstm": ([MEMORY], {"cell": "lstm", "size": 12, "previous_action": True}),
    "linear": ([CARTPOLE], {"cell": "min_gru", "size": 12}),
    "bistable": ([CARTPOLE], {"cell": "brc", "size": 12}),
}


def pair(case: str, copies: int, **options: Any) -> tuple[Rollout, Rollout]:
    tasks, policy = CASES[case]
    rollouts = []
    for _ in range(2):
        torch.manual_seed(0)
        env = task_env(*tasks, copies=copies, spaces="pad")
        rollout = make_rollout(env, policy_for(env, **policy), **options)
        if len(tasks) > 1:
            rollout.switch(torch.arange(copies) % 2)
        rollouts.append(rollout)
    assert compiled(rollouts[0].policy)
    rollouts[1]._compiled = lambda steps: None  # type: ignore[method-assign]
    return rollouts[0], rollouts[1]


def assert_close(got: Any, wanted: Any) -> None:
    """The same nested data: floats to rounding, all else exactly."""
    a, b = dict(leaves(got)), dict(leaves(wanted))
    assert a.keys() == b.keys()
    for path, value in a.items():
        if isinstance(value, Tensor):
            assert value.dtype == b[path].dtype, path
            exact = not value.is_floating_point()
            tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 2e-5, "atol": 2e-6}
            torch.testing.assert_close(value, b[path], **tolerance, msg=lambda text, path=path: f"{path}: {text}")
        else:
            assert value == b[path], path


def parts(rollout: Rollout, steps: int) -> dict[str, Any]:
    """What a chunk of so many steps has, and where the rollout is after it; states that acting keeps apart left out."""
    experience = rollout.collect(steps)
    return {**vars(experience), "chunk": vars(experience.chunk), "acted": None, "after": rollout.state_dict()}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_chunk_is_that_of_one_step_at_a_time(case: str, deterministic: bool) -> None:
    got, expected = pair(case, 5, deterministic=deterministic)
    found = [got._compiled(14)]
    expected.collect(14)
    for chunk in range(3):
        if chunk == 2:  # the memory of some copies is reset from outside between two chunks
            for rollout in (got, expected):
                rollout._forget(torch.arange(5) % 2 == 0)
        one, other = parts(got, 14), parts(expected, 14)
        assert_close(one, other)
    assert found[0] is not None
    assert other["done_TB"].any()


@pytest.mark.parametrize("case", ["encoder", "padded"])
def test_what_acts_has_the_weights_of_the_moment(case: str) -> None:
    got, expected = pair(case, 4)
    for _ in range(3):
        for rollout in (got, expected):
            with torch.no_grad():
                for parameter in rollout.policy.parameters():
                    parameter.mul_(1.1)
            torch.autograd.graph.increment_version(list(rollout.policy.parameters()))
        assert_close(got.collect(3).chunk.policy, expected.collect(3).chunk.policy)


def test_what_has_no_compiled_calls_acts_step_by_step() -> None:
    env = task_env(CARTPOLE, copies=3)
    for policy in ({"encoder": {"kind": "mlp", "norm": "layer"}}, {"encoder": {"kind": "mlp", "activation": "silu"}}):
        assert not compiled(policy_for(env, **policy))
    rollout = make_rollout(env, policy_for(env, cell="leaky"))
    assert rollout._compiled(3) is None
    assert rollout.collect(3).chunk.steps == 3
