"""What is re-initialised is forgotten by everyone: the optimiser, importances, anchors, paths and utilities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.moments import moments
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.consolidation import QuadraticPenalty
from lifelong.agent.strategies.initial import reinitialise
from lifelong.agent.strategies.l2_init import L2Init
from lifelong.agent.strategies.si import SI
from tests.agent.support import make_trainer, run

WHO: dict[str, dict[str, Any]] = {
    "redo": {"tau": 1.0, "period": 1},
    "continual_backprop": {"rate": 0.3, "maturity": 0},
    "reset_on_task": {"every": 96},
}
HOLDS: dict[str, dict[str, Any]] = {
    "ewc": {"sequences": 8, "every": 64},
    "si": {"every": 64},
    "mas": {"sequences": 8, "every": 64},
    "l2": {"every": 64},
    "l2_init": {},
}


def trainer_of(folder: Path, who: str, holds: str) -> tuple[Trainer, list[dict[str, Tensor]]]:
    """A trainer of both, and what was re-initialised in it so far: name -> mask."""
    strategy = [{"kind": who, **WHO[who]}, {"kind": holds, **HOLDS[holds]}]
    trainer = make_trainer(folder, strategy=strategy, stream={"boundaries": "hidden"})
    told: list[dict[str, Tensor]] = []
    inner = trainer.strategies[1].on_reset

    def listen(ctx: Context, entries: Mapping[str, Tensor]) -> None:
        inner(ctx, entries)
        told.append({name: mask.clone() for name, mask in entries.items()})
        check(trainer.strategies[1], entries)

    trainer.strategies[1].on_reset = listen  # type: ignore[method-assign]
    return trainer, told


def check(strategy: Strategy, entries: Mapping[str, Tensor]) -> None:
    """Right after a reset nothing is kept of the entries."""
    assert isinstance(strategy, QuadraticPenalty)
    for name, mask in entries.items():
        if name in strategy.importance:
            assert bool((strategy.importance[name][mask] == (1.0 if isinstance(strategy, L2Init) else 0.0)).all())
            assert torch.equal(strategy.anchor[name][mask], strategy.parameters[name][mask])
        if isinstance(strategy, SI) and name in strategy.start:
            assert not bool(strategy.omega[name][mask].any())
            assert torch.equal(strategy.start[name][mask], strategy.parameters[name][mask])


@pytest.mark.parametrize("holds", HOLDS)
@pytest.mark.parametrize("who", WHO)
def test_whoever_holds_parameters_lets_go_of_those_that_begin_anew(who: str, holds: str, tmp_path: Path) -> None:
    trainer, told = trainer_of(tmp_path, who, holds)
    run(trainer)
    assert len(told) >= 3 and any(bool(mask.any()) for mask in told[-1].values())


def test_entries_get_their_values_the_optimiser_forgets_them_and_all_are_told(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=[{"kind": "l2_init"}, {"kind": "si"}], optimizer={"kind": "adam"})
    run(trainer, until=128)
    ctx, policy = trainer.context(), trainer.rollout.policy
    seen: list[Strategy] = []
    for strategy in trainer.strategies:
        strategy.on_reset = lambda ctx, entries, s=strategy: seen.append(s)  # type: ignore[method-assign]
    name = "cell.weight_input"
    parameter, mask = policy.get_parameter(name), torch.rand_like(policy.get_parameter(name)) < 0.5
    before = parameter.detach().clone()
    kept = {key: x.clone() for key, x in moments(ctx.optimizer, parameter).items()}
    reinitialise(ctx, {name: torch.full_like(before, 3.0)}, {name: mask})
    assert torch.equal(parameter, torch.where(mask, torch.tensor(3.0), before))
    assert kept.keys() == {"exp_avg", "exp_avg_sq"}
    for key, moment in moments(ctx.optimizer, parameter).items():
        assert torch.equal(moment, kept[key].masked_fill(mask, 0.0)) and bool(moment.any())
    assert seen == trainer.strategies
