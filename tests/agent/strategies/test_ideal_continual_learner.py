"""The ideal continual learner: exact for linear regression, and constraints that reach the constrained optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.strategies.ideal_continual_learner import IdealContinualLearner, Multipliers, restricted
from tests.agent.support import make_trainer, run


@pytest.mark.parametrize("inputs", [12, 40])
def test_for_linear_regression_it_is_joint_least_squares_where_tasks_share_a_solution(inputs: int) -> None:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    truth, w, basis = normal(inputs, 3), torch.zeros(inputs, 3).double(), torch.eye(inputs).double()
    seen: list[torch.Tensor] = []
    for task in range(5):
        x = normal(9, 4) @ normal(4, inputs)  # of rank 4: five tasks leave some of 40 dimensions free, none of 12
        if task == 3:
            x = seen[0][:5] @ torch.eye(inputs).double()  # nothing new
        w, basis = restricted(x, x @ truth, w, basis)
        seen.append(x)
        together = torch.cat(seen)
        joint = torch.linalg.pinv(together) @ (together @ truth)
        torch.testing.assert_close(w, joint, atol=1e-8, rtol=0)
        for old in seen:  # nothing is forgotten
            torch.testing.assert_close(old @ w, old @ truth, atol=1e-8, rtol=0)
        free = inputs - int(torch.linalg.matrix_rank(together))
        assert basis.shape == (inputs, free)
        torch.testing.assert_close(basis.T @ basis, torch.eye(free).double())


def test_where_tasks_disagree_the_old_ones_come_first() -> None:
    x, w, basis = torch.eye(2).double()[:1], torch.zeros(2, 1).double(), torch.eye(2).double()
    w, basis = restricted(x, torch.tensor([[1.0]]).double(), w, basis)
    w, basis = restricted(torch.ones(1, 2).double(), torch.tensor([[5.0]]).double(), w, basis)
    torch.testing.assert_close(w, torch.tensor([[1.0], [4.0]]).double())
    assert basis.shape[1] == 0
    again, _ = restricted(x, torch.tensor([[9.0]]).double(), w, basis)
    assert torch.equal(again, w)


@pytest.mark.parametrize(("optimum", "multiplier", "limit"), [(1.5, 3.0, 0.25), (3.0, 0.0, 9.0)])
def test_the_multipliers_reach_those_of_the_constrained_optimum(
    optimum: float, multiplier: float, limit: float
) -> None:
    # min (w - 3)^2 subject to (w - 1)^2 <= limit: lambda = (3 - w) / (w - 1) where it binds
    multipliers, w = Multipliers(rho=1.0, dual=0.5), torch.tensor(0.0, requires_grad=True)
    multipliers.add()
    for _ in range(2000):
        constraint = (w - 1).square()
        weight = multipliers.weights((constraint.detach() - limit).view(1))
        (gradient,) = torch.autograd.grad((w - 3).square() + weight[0] * constraint, w)
        with torch.no_grad():
            w -= 0.02 * gradient
    assert float(w.detach()) == pytest.approx(optimum, abs=1e-3)
    assert float(multipliers.values) == pytest.approx(multiplier, abs=1e-2)


def trained(folder: Path, **options: Any) -> Any:
    spec = {"kind": "ideal_continual_learner", "sequences": 16, "batch": 16, **options}
    changes = {"optimizer": {"kind": "adam", "lr": 0.02}, "stream": {"steps_per_task": 1024}}
    trainer = make_trainer(folder, strategy=[spec], **changes)
    run(trainer)
    assert isinstance(trainer.strategies[0], IdealContinualLearner)
    return trainer.strategies[0]


def test_a_violated_constraint_gets_heavier_until_it_holds(tmp_path: Path) -> None:
    free = trained(tmp_path / "free", rho=0.0, dual=0.0)
    held = trained(tmp_path / "held", slack=0.02, rho=5.0, dual=0.5)
    assert free.report()["multiplier"] == 0.0 and free.report()["distance"] > 0.1
    assert held.report()["multiplier"] > 0.0 and held.report()["distance"] < 0.5 * free.report()["distance"]


def test_the_oldest_constraint_goes_where_there_are_too_many(tmp_path: Path) -> None:
    strategy = trained(tmp_path, constraints=2, every=256)
    assert strategy.made > 3 and len(strategy.stores) == len(strategy.multipliers.values) == 2
    assert strategy.stores[1].stamp.max() > strategy.stores[0].stamp.max()
    assert strategy.replay_sequences() == 32
