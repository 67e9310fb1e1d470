"""What every registered strategy must do, through the real trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.registry import REGISTRY, load, options_of
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Strategy, overrides
from tests.agent.history import History
from tests.agent.support import assert_identical, make_trainer, run

#: what `make test-all` adds to the representative part of the matrix
SLOW = pytest.mark.slow
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
    "perfect_memory": {"start": 8},
    "pseudo_rehearsal": {"batch": 4},
    "rer": {"capacity": 24, "start": 8, "interval": 2, "relation_lr": 0.1},
    "uer": {"capacity": 24, "start": 8},
    "explore": {"steps": 100},
    "refresh": {"rate": 1e-2},
    "ideal_continual_learner": {"sequences": 8, "batch": 4, "constraints": 2},
    "gpm": {"chunks": 2, "elementwise": "importance", "critic": "projected", "per_task": 0.5},
    "owm": {"chunks": 2, "room": 0.3},
    "adam_nscl": {"chunks": 2, "per_task": 0.4},
    "recurrent_projection": {"chunks": 2},
    "hlop": {"period": 2, "per_task": 0.4},
    "trgp": {"chunks": 2, "trust": 0.01, "threshold": 0.9},
    "ogd": {"gradients": 8, "capacity": 12},
    "mas": {"sequences": 8, "value_weight": 1.0},
    "shrink_perturb": {"shrink": 0.01, "noise": 0.02},
    "weight_clipping": {"kappa": 1.0},
    "redo": {"tau": 0.5, "period": 2},
    "continual_backprop": {"rate": 0.1, "maturity": 1},
    "upgd": {"sigma": 0.1, "per": "unit"},
    "c_chain": {"batch": 4, "value_weight": 1.0},
    "cpr": {"period": 3, "rate": 0.1},
    "hare_tortoise": {"momentum": 0.9, "period": 4, "evaluate": "tortoise"},
    "spectral": {"strength": 0.1},
    "parseval": {"strength": 0.1},
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


def resumes_bit_for_bit(folder: Path, name: str, options: dict[str, Any], stop: int, **changes: Any) -> None:
    whole = trainer_with(folder / "whole", name, options, **changes)
    run(whole)
    first = trainer_with(folder / "cut", name, options, **changes)
    run(first, until=stop)
    assert first.step == stop
    second = trainer_with(folder / "cut", name, options, **changes)
    saved, damaged = checkpoint.load(folder / "cut" / "checkpoints")  # torch.load(weights_only=True)
    assert not damaged
    torch.manual_seed(99)
    second.load_state_dict(saved)
    second.evaluations = first.evaluations  # of the log, which is silent here
    assert second.step == stop
    assert_identical(second.strategies[0].state_dict(), first.strategies[0].state_dict())
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


@every_strategy
@pytest.mark.parametrize("stop", [pytest.param(96, id="first-task", marks=SLOW), pytest.param(224, id="second-task")])
def test_a_run_resumed_from_its_checkpoint_is_the_uninterrupted_run_bit_for_bit(
    name: str, options: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    resumes_bit_for_bit(tmp_path, name, options, stop)


@pytest.mark.slow
@every_strategy
@pytest.mark.parametrize(("cell", "gradient"), [("elstm", "bptt"), ("gru", "bptt"), ("diagonal_lstm", "rtrl")])
def test_runs_of_other_cells_and_engines_resume_bit_for_bit(
    name: str, options: dict[str, Any], cell: str, gradient: str, tmp_path: Path
) -> None:
    changes = {"policy": {"cell": {"kind": cell, "size": 6}}, "gradient": gradient}
    resumes_bit_for_bit(tmp_path, name, options, 224, **changes)


@every_strategy
def test_the_carry_is_exact_over_the_whole_history_of_what_it_did(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    tasks = [{"name": f"t{i}", "env": {"kind": "TMaze", "corridor": 9, "reversed": i}} for i in (0, 1)]
    trainer = trainer_with(tmp_path, name, options, stream={"tasks": tasks})  # 10 steps, in chunks of 4
    engine, trainer.planned.plan = trainer.learner.engine, None  # a plan moves the carry itself (see test_plan)
    assert isinstance(engine, RTRL)
    history = History(engine)
    run(trainer, until=256)  # in the second task
    assert history.chunks == 8
    memory_BN, changes = history.memory()
    torch.testing.assert_close(memory_BN.float(), trainer.rollout.state_BS, rtol=1e-4, atol=1e-5)
    boundary_BN = torch.randn(memory_BN.shape, generator=torch.Generator().manual_seed(0))
    whole = torch.autograd.grad(memory_BN, changes, boundary_BN.double())
    carried = history.carried(boundary_BN)
    for mine, theirs in zip(carried, whole, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    if name == "reset_on_task" and options:  # every second chunk begins without a history
        return
    short_BN, changes = history.memory(truncated=True)
    short = torch.autograd.grad(short_BN, changes, boundary_BN.double())
    assert not torch.allclose(carried[0].double(), short[0], rtol=1e-2, atol=1e-3 * float(short[0].abs().max()))


@every_strategy
def test_hidden_boundaries_are_handled_or_refused_in_a_sentence(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    hidden = {"boundaries": "hidden", "task_id": "hidden"}
    try:
        trainer = trainer_with(tmp_path, name, options, stream=hidden)
    except ConfigError as error:
        assert name in str(error) and ("boundaries" in str(error) or "task_id" in str(error))
        return
    assert not trainer.strategies[0].needs_boundaries and not trainer.strategies[0].needs_task_id
    run(trainer, until=256)
    assert trainer.segment == 1 and (trainer.context().segment, trainer.context().task) == (0, None)


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
@pytest.mark.parametrize(
    ("cell", "objective"),
    [
        ("gru", "actor_critic"),
        pytest.param("gru", "ppo", marks=SLOW),
        pytest.param("lstm", "actor_critic", marks=SLOW),
        pytest.param("lstm", "ppo", marks=SLOW),
    ],
)
def test_it_works_with_dense_cells_and_every_objective_it_allows(
    name: str, options: dict[str, Any], objective: str, cell: str, tmp_path: Path
) -> None:
    if load("strategy", name).needs_off_policy and objective == "ppo":
        pytest.skip("refused; see test_replaying")
    changes = {"policy": {"cell": {"kind": cell, "size": 6}}, "gradient": "bptt", "objective": {"kind": objective}}
    trainer = trainer_with(tmp_path, name, options, **changes)
    run(trainer, until=256)
    assert all(bool(p.isfinite().all()) for p in trainer.rollout.policy.parameters())
