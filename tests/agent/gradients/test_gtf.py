"""Generalised teacher forcing: gradients shrink by 1 - alpha a step, and what cannot be trained so is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong.agent.cells.plrnn import PLRNN
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.gtf import EVERY, FALL, GTF
from tests.agent.support import make_trainer, run

TASKS = [{"name": "lorenz", "env": {"kind": "Lorenz", "length": 12}}]
OBSERVED = {"kind": "plrnn", "size": 3, "hidden": 9, "observed": True}
T, B, D = 6, 5, 3


def trainer(folder: Path, gradient: dict[str, Any], cell: Any = OBSERVED, **changes: Any) -> Any:
    stream = {"tasks": TASKS, "steps_per_task": 192, "task_id": "hidden"}
    policy = {"encoder": {"kind": "identity"}, "cell": cell, **changes}
    options = {"stream": stream, "policy": policy, "objective": "supervised"}
    return make_trainer(folder, gradient={"kind": "gtf", **gradient}, **options)


def engine(alpha: float, folder: Path, **options: Any) -> GTF:
    """With a read-out that is no identity, in float64."""
    made = trainer(folder, {"alpha": alpha, **options}).learner.engine
    torch.manual_seed(0)
    for each in (made.cell, made.readout):
        each.double()
        for parameter in each.parameters():
            nn.init.normal_(parameter, std=0.6)
    made.alpha_B = made.alpha_B.double()
    assert isinstance(made, GTF)
    return made


def data() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, D, generator=g, dtype=torch.float64)
    state = torch.randn(B, D, generator=g, dtype=torch.float64)
    is_init = torch.zeros(T, B, dtype=torch.bool)
    is_init[3, 1] = True
    return x, state, is_init


def test_the_states_are_those_of_equation_the_paper_has(tmp_path: Path) -> None:
    """z~ = (1 - alpha) z + alpha z^, z being the prediction and z^ the observation, where all of the state is seen."""
    alpha, (x, state, is_init) = 0.3, data()
    made = engine(alpha, tmp_path)
    y, last = made.sequence(x, state, is_init)
    cell, W, c = made.cell, made.readout.weight, made.readout.bias
    assert isinstance(cell, PLRNN)
    forced = x[0]
    for t in range(T):
        if t:
            share = torch.where(is_init[t], 1.0, alpha)[:, None]
            forced = (1 - share) * (y[t - 1] @ W.T + c) + share * x[t]
        u = forced @ cell.inner.weight.T
        expected = cell.decay * forced + (torch.relu(u + cell.threshold) - torch.relu(u)) @ cell.outer.weight.T
        expected = expected + forced @ cell.input.weight.T + cell.input.bias
        torch.testing.assert_close(y[t], expected)
    assert torch.equal(last, y[-1])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_a_gradient_over_t_steps_is_a_product_of_jacobians_each_times_one_minus_alpha(
    alpha: float, tmp_path: Path
) -> None:
    x, state, is_init = data()
    is_init[:] = False
    made = engine(alpha, tmp_path)
    x = x.requires_grad_()
    y, _ = made.sequence(x, state, is_init)
    said = made.readout(y)
    (found,) = torch.autograd.grad(said[-1].sum(), x)
    product = torch.ones(B, 1, D, dtype=torch.float64)
    heard = [x[0], *[(1 - alpha) * said[t - 1] + alpha * x[t] for t in range(1, T)]]
    for t in reversed(range(T)):
        product = product @ made.growth(heard[t].detach(), state)  # the state before does not matter: it is observed
        share = 1.0 if t == 0 else alpha
        torch.testing.assert_close(found[t], share * product[:, 0])
        product = (1 - share) * product


def test_alpha_of_one_is_training_on_one_step_and_of_zero_the_free_model(tmp_path: Path) -> None:
    x, state, is_init = data()
    one = engine(1.0, tmp_path / "one")
    y, _ = one.sequence(x, state, is_init)
    torch.testing.assert_close(y, one.cell.sequence(x, state, is_init)[0])
    free = engine(0.0, tmp_path / "free")
    is_init[:] = False
    y, _ = free.sequence(x, state, is_init)
    point = x[0]
    for t in range(T):
        out, state = free.cell.step(point, state)
        torch.testing.assert_close(y[t], out)
        point = free.readout(out)


def test_growth_is_the_jacobian_of_the_free_model(tmp_path: Path) -> None:
    made, (x, state, _) = engine(0.1, tmp_path), data()

    def once(point: Tensor) -> Tensor:
        return made.readout(made.cell.step(point[None], state[:1])[0])[0]

    expected = torch.func.jacrev(once)(x[0, 0])
    torch.testing.assert_close(made.growth(x[0, :1], state[:1])[0], expected)


def test_adaptive_alpha_is_one_minus_one_over_the_mean_growth_and_falls_slowly(tmp_path: Path) -> None:
    made, (x, state, is_init) = engine(0.0, tmp_path, adaptive=True), data()
    with torch.no_grad():  # a linear model that stretches by 1.6 everywhere
        for parameter in made.cell.parameters():
            parameter.zero_()
        made.cell.decay.fill_(1.6)
        made.readout.weight.copy_(torch.eye(D))
    made.sequence(x, state, is_init)
    assert float(made.alpha_B[0]) == pytest.approx(1 - 1 / 1.6, rel=1e-6)
    with torch.no_grad():
        made.cell.decay.fill_(0.5)  # it asks for none
    for _ in range(EVERY):
        made.sequence(x, state, is_init)
    assert float(made.alpha_B[0]) == pytest.approx((1 - 1 / 1.6) * FALL**EVERY, rel=1e-6)
    saved = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    other = engine(0.0, tmp_path / "other", adaptive=True)
    other.load_state_dict(saved)
    assert torch.equal(other.alpha_B, made.alpha_B) and torch.equal(other.passes_B, made.passes_B)


@pytest.mark.parametrize("cell", [OBSERVED, {"kind": "gru", "size": 6}, {"kind": "stack", "size": 4}])
def test_a_run_trains_with_it_and_logs_alpha(cell: dict[str, Any], tmp_path: Path) -> None:
    made = trainer(tmp_path, {"alpha": 0.2, "adaptive": True}, cell)
    before = [parameter.clone() for parameter in made.learner.parameters]
    seen = run(made).seen
    assert 0 <= seen["gradient/forcing"] <= 0.2 and math.isfinite(seen["loss/error"])
    changed = [not torch.equal(a, b) for a, b in zip(before, made.learner.parameters, strict=True)]
    assert sum(changed) >= len(changed) - 3  # the critic and the spread of the actor are not asked


def test_what_does_not_predict_what_it_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gtf needs one head that predicts the next observation"):
        trainer(tmp_path, {}, "gru", encoder={"kind": "mlp", "hidden": [4]})
    with pytest.raises(ConfigError, match="the cell reads 6 numbers, the head predicts 3"):
        trainer(tmp_path, {}, "gru", previous_action=True)
    with pytest.raises(ConfigError, match="gtf needs one head"):
        make_trainer(tmp_path, gradient="gtf")
    with pytest.raises(ConfigError, match="size is 2, and 3 units are observed"):
        trainer(tmp_path, {}, {**OBSERVED, "size": 2})
