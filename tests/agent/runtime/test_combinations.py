"""Configs drawn at random run as in torch, chunk by chunk: with a plan, with compiled passes or with neither."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.config import merge
from lifelong.agent.errors import ConfigError, NonFiniteError
from lifelong.agent.registry import REGISTRY
from lifelong.agent.runtime.trainer import Trainer
from tests.agent.runtime.planned.test_passes import assert_alike
from tests.agent.strategies.test_conformance import AT_WORK
from tests.agent.support import make_trainer, one_by_one

CHUNKS = 24
TOLERANCE = 1e-2  # rounding grows while it is learned from
CARTPOLE = {"kind": "CartPole", "max_episode_steps": 7}
STREAMS: list[dict[str, Any]] = [
    {"tasks": [{"name": "a", "env": CARTPOLE}, {"name": "b", "env": {**CARTPOLE, "length": 0.9}}]},
    {"tasks": [{"name": "a", "env": CARTPOLE, "reward_scale": 0.1}], "boundaries": "hidden"},
    {
        "tasks": [{"name": "a", "env": {"kind": "RepeatPrevious", "symbols": 3}}, {"name": "b", "env": CARTPOLE}],
        "spaces": "pad",
    },
    {"tasks": [{"name": "p", "env": {"kind": "Pendulum", "max_episode_steps": 9}}]},
    {"tasks": [{"name": "m", "env": {"kind": "TMaze", "corridor": 5}}, {"name": "c", "env": {"kind": "Copy"}}]},
]
ENCODERS: list[Any] = [
    "identity",
    {"kind": "mlp", "hidden": [12]},
    {"kind": "mlp", "hidden": [12, 9], "activation": "crelu"},
    {"kind": "mlp", "hidden": [9], "activation": "silu"},
    {"kind": "mlp", "hidden": [9], "norm": "layer"},
]
CELLS = ["elstm", "elstm", "gru", "lstm", "diagonal_gru", "diagonal_lstm", "indrnn", "min_gru", "rtu"]
OBJECTIVES: list[dict[str, Any]] = [
    {"kind": "actor_critic"},
    {"kind": "actor_critic", "lam": 0.9, "entropy_weight": 0.1, "advantage": "impala"},
    {"kind": "ppo", "epochs": 2, "minibatches": 2},
    {"kind": "ppo", "epochs": 1, "minibatches": 1, "normalize_advantage": False},
]
OPTIMIZERS: list[dict[str, Any]] = [
    {"kind": "adam", "lr": 0.003},
    {"kind": "adamw", "lr": 0.003, "weight_decay": 0.1},
    {"kind": "sgd", "lr": 0.03},
    {"kind": "sgd", "lr": 0.03, "momentum": 0.9},
    {"kind": "adam", "lr": {"from": 0.004, "to": 0.001, "over": 400}},
]


def drawn(seed: int) -> dict[str, Any]:
    """A config, maybe an impossible one."""
    draw = random.Random(seed)
    cell = draw.choice(CELLS)
    gradient = "bptt" if cell in ("gru", "lstm") else draw.choice(["rtrl", "bptt"])
    names = draw.sample([name for name in REGISTRY["strategy"] if name != "finetune"], draw.choice([0, 0, 1, 2]))
    stream = {**draw.choice(STREAMS), "task_id": draw.choice(["observed", "hidden"]), "steps_per_task": 192}
    return {
        "seed": seed,
        "stream": stream,
        "policy": {
            "encoder": draw.choice(ENCODERS),
            "cell": {"kind": cell, "size": draw.choice([5, 8, 17])},
            "previous_action": draw.random() < 0.4,
            "previous_reward": draw.random() < 0.4,
            "heads": draw.choice(["shared", "shared", "per_task"]),
        },
        "gradient": gradient,
        "objective": draw.choice(OBJECTIVES),
        "optimizer": draw.choice(OPTIMIZERS),
        "max_grad_norm": draw.choice([0, 0.5]),
        "strategy": [{"kind": name, **AT_WORK.get(name, {})} for name in names],
        "rollout": {"copies": draw.choice([2, 8]), "steps": draw.choice([1, 4, 7])},
    }


def possible(folder: Path, seed: int) -> tuple[Trainer, Trainer]:
    """Two trainers of the first config from `seed` on that can be."""
    for nonce in range(seed, seed + 100_000, 1000):
        try:
            ours, plain = (make_trainer(folder / f"{name}{nonce}", **merge({}, drawn(nonce))) for name in "ab")
        except ConfigError:
            continue
        one_by_one(plain)
        return ours, plain
    raise AssertionError("nothing is possible")


def advanced(trainer: Trainer) -> bool:
    """A chunk; False if a number in it was not finite."""
    try:
        trainer.advance()
    except NonFiniteError:
        return False
    return True


FAST = (0, 1, 2, 4, 7, 13, 15, 24)


@pytest.mark.parametrize("seed", [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in range(60)])
def test_a_config_drawn_at_random_runs_as_in_torch(seed: int, tmp_path: Path) -> None:
    ours, plain = possible(tmp_path, seed)
    ours.planned.rounds = lambda trainer: 1  # type: ignore[method-assign]
    for _ in range(CHUNKS):
        went = advanced(ours)
        assert went == advanced(plain)
        if not went:
            break
    assert ours.step == plain.step
    assert_alike(*[each.shared_state()["policy"] for each in (ours, plain)], TOLERANCE)
    assert_alike(*[each.learner.engine.state_dict() for each in (ours, plain)], TOLERANCE)
    a, b = (each.own_state()["rollout"] for each in (ours, plain))
    assert torch.equal(a["is_init"], b["is_init"]) and torch.equal(a["generator"], b["generator"])


def test_what_is_drawn_has_plans_passes_and_neither(tmp_path: Path) -> None:
    made = [possible(tmp_path / str(seed), seed)[0] for seed in range(16)]
    assert any(each.planned.plan is not None for each in made)
    assert any(each.planned.plan is None and not each.learner.passes.why for each in made)
    assert any(each.learner.passes.why for each in made)
