"""What every registered strategy must do, through the real trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.registry import REGISTRY, load, options_of
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Strategy, overrides
from tests.agent.support import assert_identical, make_trainer, run

#: options under which a strategy is fully at work within a few chunks
AT_WORK: dict[str, dict[str, Any]] = {
    "agem": {"capacity": 24, "start": 8},
    "clear": {"capacity": 24, "start": 8},
    "der": {"capacity": 24, "start": 8},
    "der_pp": {"capacity": 24, "start": 8, "burn_in": 1},
    "er": {"capacity": 24, "start": 8, "writing": "task_quota", "sampling": "task_balanced"},
    "ewc": {"sequences": 8},
    "functional": {"sequences": 8, "capacity": 12, "batch": 4},
    "packnet": {"keep": 0.5, "prune_after": 96},
    "dst": {"density": 0.4, "period": 2},
    "hypernet": {"chunk": 50, "form": "recurrent", "parts": ["cell", "actor"]},
    "explore": {"steps": 100},
    "gpm": {"chunks": 2, "elementwise": "importance", "critic": "projected", "per_task": 0.5},
    "owm": {"chunks": 2, "room": 0.3},
    "adam_nscl": {"chunks": 2, "per_task": 0.4},
    "recurrent_projection": {"chunks": 2},
    "mas": {"sequences": 8, "value_weight": 1.0},
    "shrink_perturb": {"shrink": 0.01, "noise": 0.02},
    "weight_clipping": {"kappa": 1.0},
    "redo": {"tau": 0.5, "period": 2},
    "continual_backprop": {"rate": 0.1, "maturity": 1},
    "upgd": {"sigma": 0.1, "per": "unit"},
}
CLOCKED = [name for name in REGISTRY["strategy"] if "every" in options_of(load("strategy", name))]
ON_A_CLOCK: dict[str, dict[str, Any]] = {name: {"every": 64} for name in CLOCKED}
STRATEGIES = [(name, {}) for name in REGISTRY["strategy"]] + list(ON_A_CLOCK.items())
every_strategy = pytest.mark.parametrize(
    ("name", "options"), STRATEGIES, ids=[f"{n}-{'clock' if o else 'boundary'}" for n, o in STRATEGIES]
)


def trainer_with(folder: Path, name: str, options: dict[str, Any], **changes: Any) -> Trainer:
    spec = {"kind": name, **AT_WORK.get(name, {}), **options}
    return make_trainer(folder, strategy=[spec], **changes)


@every_strategy
def test_it_trains_reports_finite_numbers_and_moves_the_parameters(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trainer_with(tmp_path, name, options)
    before = {n: p.clone() for n, p in trainer.rollout.policy.state_dict().items()}
    seen = run(trainer).seen
    assert trainer.step == 384
    after = trainer.rollout.policy.state_dict()
    assert all(bool(p.isfinite().all()) for p in after.values())
    assert any(not torch.equal(before[n], p) for n, p in after.items())
    assert all(math.isfinite(value) for value in seen.values())
    reported = [key for key in seen if key.startswith(f"strategy/{name}/")]
    assert bool(reported) == (name != "finetune")


@every_strategy
@pytest.mark.parametrize("stop", [96, 224], ids=["first-task", "second-task"])
def test_a_run_resumed_from_its_checkpoint_is_the_uninterrupted_run_bit_for_bit(
    name: str, options: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    whole = trainer_with(tmp_path / "whole", name, options)
    run(whole)
    first = trainer_with(tmp_path / "cut", name, options)
    run(first, until=stop)
    assert first.step == stop
    second = trainer_with(tmp_path / "cut", name, options)
    saved, damaged = checkpoint.load(tmp_path / "cut" / "checkpoints")  # torch.load(weights_only=True)
    assert not damaged
    torch.manual_seed(99)
    second.load_state_dict(saved)
    second.evaluations = first.evaluations  # of the log, which is silent here
    assert second.step == stop
    assert_identical(second.strategies[0].state_dict(), first.strategies[0].state_dict())
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


@every_strategy
def test_it_stands_beside_other_strategies(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    others = [other for other in ("ewc", "er", "l2_init") if other != name]
    kinds = [{"kind": name, **AT_WORK.get(name, {}), **options}, *({"kind": k, **AT_WORK.get(k, {})} for k in others)]
    trainer = make_trainer(tmp_path, strategy=kinds)
    run(trainer)
    assert all(bool(p.isfinite().all()) for p in trainer.rollout.policy.parameters())


@every_strategy
def test_every_hook_it_overrides_is_one_of_the_contract(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    strategy = trainer_with(tmp_path, name, options).strategies[0]
    hooks = [hook for hook in vars(Strategy) if not hook.startswith("_") and callable(getattr(Strategy, hook))]
    used = [hook for hook in hooks if overrides([strategy], hook)]
    assert used or name == "finetune"
    assert strategy.data_parallel in ("none", "equal", "reduce", "shard")


@every_strategy
@pytest.mark.parametrize("objective", ["actor_critic", "ppo"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_it_works_with_dense_cells_and_every_objective_it_allows(
    name: str, options: dict[str, Any], objective: str, cell: str, tmp_path: Path
) -> None:
    if load("strategy", name).needs_off_policy and objective == "ppo":
        pytest.skip("refused; see test_replaying")
    changes = {"policy": {"cell": {"kind": cell, "size": 6}}, "gradient": "bptt", "objective": {"kind": objective}}
    trainer = trainer_with(tmp_path, name, options, **changes)
    run(trainer, until=256)
    assert all(bool(p.isfinite().all()) for p in trainer.rollout.policy.parameters())
