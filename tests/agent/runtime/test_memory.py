"""What a run will hold is estimated before it starts."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import ConfigError
from lifelong.agent.runtime import build as building
from lifelong.agent.runtime import memory
from lifelong.agent.runtime.memory import needs_of
from lifelong.agent.runtime.walk import tensors_of
from tests.agent.support import make_config, make_trainer, run

TASKS: dict[str, dict[str, Any]] = {
    "without truncated steps": {"kind": "TMaze", "corridor": 3},
    "with truncated steps": {"kind": "CartPole", "max_episode_steps": 6},
    "with wide observations": {"kind": "ImageRows", "rows_per_step": 14},
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("inputs", "burn_in"), [(False, 0), (True, 0), (True, 1)])
@pytest.mark.parametrize("stored", ["exact", "compact"])
def test_the_estimate_of_a_stored_sequence_is_what_it_takes(
    name: str, inputs: bool, burn_in: int, stored: str, tmp_path: Path
) -> None:
    trainer = make_trainer(
        tmp_path,
        stream={"tasks": [{"name": "one", "env": TASKS[name]}], "task_id": "hidden"},
        policy={"previous_action": inputs, "previous_reward": inputs, "cell": {"size": 48 if burn_in else 6}},
        strategy=[{"kind": "clear", "capacity": 40, "start": 8, "burn_in": burn_in, "storage": stored}],
    )
    run(trainer, until=192)
    (clear,) = trainer.strategies
    storage = clear.replay.storage  # type: ignore[attr-defined]
    takes = sum(tensor.nbytes for tensor in vars(storage).values()) / 40
    needs = needs_of(trainer.config, trainer.rollout.env, trainer.rollout.policy, [clear], 8)  # type: ignore[arg-type]
    estimate = dict(needs)["options of strategy clear"] / 40
    assert takes / 1.1 < estimate < 1.35 * takes


def test_the_estimate_of_the_policy_is_what_it_takes_with_gradients_and_optimiser(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, policy={"cell": {"kind": "elstm", "size": 32}})
    run(trainer, until=128)
    policy = trainer.rollout.policy
    takes = sum(p.nbytes + (p.grad.nbytes if p.grad is not None else 0) for p in policy.parameters())
    takes += sum(tensor.nbytes for tensor in tensors_of(list(trainer.learner.optimizer.state.values())))
    needs = dict(needs_of(trainer.config, trainer.rollout.env, policy, trainer.strategies, 8))  # type: ignore[arg-type]
    assert takes == pytest.approx(needs["policy.encoder and policy.cell"], rel=0.3)


#: what is asked for, and the key that the sentence names
TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"policy": {"encoder": {"kind": "mlp", "hidden": [60_000, 60_000]}}}, "policy.encoder and policy.cell"),
    "units": (
        {"policy": {"cell": {"kind": "gru", "size": 60_000}}, "gradient": "bptt"},
        "policy.encoder and policy.cell",
    ),
    "a carry": (
        {"policy": {"cell": {"kind": "diagonal_gru", "size": 200_000}}, "gradient": "rtrl", "rollout": {"copies": 256}},
        "gradient rtrl",
    ),
    "a whole sensitivity": (
        {"policy": {"cell": {"kind": "gru", "size": 128}}, "gradient": "exact", "rollout": {"copies": 128}},
        "gradient exact",
    ),
    "copies": ({"rollout": {"copies": 10**7, "steps": 10}}, "rollout.copies x rollout.steps"),
    "steps": ({"rollout": {"copies": 64, "steps": 10**6}}, "rollout.copies x rollout.steps"),
    "episodes": ({"evaluation": {"episodes": 10**5}, "policy": {"cell": {"kind": "elstm", "size": 4000}}}, "episodes"),
    "a replay": ({"strategy": {"kind": "clear", "capacity": 10**9}}, "strategy clear"),
    "a Fisher": ({"strategy": {"kind": "ewc", "sequences": 10**6}, "rollout": {"steps": 100}}, "strategy ewc"),
    "a covariance": ({"strategy": {"kind": "gpm", "chunks": 10**6}}, "strategy gpm"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_does_not_fit_is_refused_before_any_of_it_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, words = TOO_MUCH[name]
    monkeypatch.setattr(memory, "memory_of", lambda device: 2 * 10**9)
    config = make_config(**{"stream": {"tasks": [{"env": "TMaze"}], "steps_per_task": 10**10}, **changes})
    before, took = torch.get_rng_state(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=f"{words}.*GB would be needed, .* this machine has 2.0 GB; lower it"):
        building.foresee(
            config,
            building.build_stream(config),
            [building.registry.build("strategy", spec) for spec in config.strategy],
            config.rollout.copies,
            torch.device("cpu"),
        )
    assert torch.equal(torch.get_rng_state(), before)  # what comes after draws as if nothing had been looked at
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - took < 500_000  # kilobytes
    with pytest.raises(ConfigError, match="would be needed"):
        building.build(config, tmp_path)


def test_sequences_on_a_disk_that_cannot_hold_them_are_refused_and_take_no_memory(tmp_path: Path) -> None:
    spec = {"kind": "clear", "capacity": 10**12, "place": "disk"}
    with pytest.raises(ConfigError, match=r"strategy clear: .* GB would be needed on the disk, which has .*lower"):
        make_trainer(tmp_path, strategy=[spec])
    with pytest.raises(ConfigError, match=r"strategy clear: .* this machine has .*lower"):
        make_trainer(tmp_path, strategy=[{"kind": "clear", "mib": 10**9}])
    trainer = make_trainer(tmp_path, strategy=[{"kind": "clear", "capacity": 1000, "place": "disk"}])
    policy = trainer.rollout.policy
    needs = dict(needs_of(trainer.config, trainer.rollout.env, policy, trainer.strategies, 8))  # type: ignore[arg-type]
    assert needs["options of strategy clear"] == 0


def test_a_container_has_the_memory_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "_CONTAINER", (str(tmp_path / "memory.max"), str(tmp_path / "none")))
    machine = memory.memory_of(torch.device("cpu"))
    assert machine > 10**8
    (tmp_path / "memory.max").write_text("100000000\n")
    assert memory.memory_of(torch.device("cpu")) == 10**8


def test_traces_count_once_a_copy_and_prediction(tmp_path: Path) -> None:
    series = {"tasks": [{"name": "s", "env": {"kind": "Series"}}], "task_id": "hidden"}
    trainer = make_trainer(tmp_path, stream=series, objective="td", rollout={"copies": 5, "steps": 1})
    trainer.advance()
    env, policy = trainer.rollout.env, trainer.rollout.policy
    needs = dict(needs_of(trainer.config, env, policy, trainer.strategies, 5))  # type: ignore[arg-type]
    trace = trainer.learner.objective.own_state_dict()["trace"]
    assert needs["rollout.copies with objective td"] == 3 * trace.nbytes
