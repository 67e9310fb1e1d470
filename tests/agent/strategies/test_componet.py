"""CompoNet: modules that share no features, and hear of each other by their policies alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lifelong.agent.cells.base import Cell
from lifelong.agent.errors import ConfigError
from lifelong.agent.modules.composed import ComposedHead
from lifelong.agent.runtime import changes
from lifelong.agent.strategies.componet import CompoNet
from tests.agent.strategies.test_isolation import Life, lived
from tests.agent.support import UNIT_CELLS, make_config, make_trainer, random_chunk

COLUMNS = 3


@pytest.mark.parametrize("cell", UNIT_CELLS)
def test_what_a_column_says_depends_on_no_other_column(cell: str) -> None:
    """By autograd, through the encoder and over time: units of column k on every parameter and every unit before."""
    life = Life([CompoNet(columns=COLUMNS)], cell=cell, tasks=COLUMNS)
    for task in range(COLUMNS):
        life.start(task)
        life.train(task, 2)
    policy, layers = life.policy, {"encoder.layers.0": 9, "encoder.layers.2": 8, "cell": 8}
    columns = {name: torch.arange(size) * COLUMNS // size for name, size in layers.items()}
    chunk = random_chunk(policy, 5, 4)
    x = policy.encoder(chunk.obs.flatten(0, 1))
    features = columns["encoder.layers.2"]
    for k in range(COLUMNS):
        said = x[:, features == k].square().sum()
        rows = torch.autograd.grad(said, policy.get_parameter("encoder.layers.0.weight"), retain_graph=True)[0]
        heard = rows.abs().sum(1) > 0
        assert bool(heard.any()) and not bool(heard[columns["encoder.layers.0"] != k].any())
    rows, _ = policy.cell.unit_parameters()  # others, such as keys of a matrix memory, are the first column's
    apart = {*rows} >= {name for name, _ in policy.cell.named_parameters()}
    state = torch.randn(4, policy.cell.state_size, requires_grad=True)
    x_TBD = x.detach().view(5, 4, -1).requires_grad_()
    y, _ = Cell.sequence(policy.cell, x_TBD, state, torch.zeros(5, 4, dtype=torch.bool))
    for k in range(COLUMNS):
        said = y.unflatten(-1, (-1, 8))[..., columns["cell"] == k].square().sum()
        dx, dstate = torch.autograd.grad(said, (x_TBD, state), retain_graph=True)
        heard = dx[..., :8].abs().sum((0, 1)) > 0
        assert bool(heard[features == k].any())
        assert not bool(heard[(features != k) & (apart | (features > 0))].any())
        by_unit = dstate[:, : policy.cell.unit_state].view(4, -1, 8).abs().sum((0, 1))
        column = columns["cell"]
        assert not bool(by_unit[(column != k) & (apart | (column > 0))].any()) and bool(
            (by_unit[column == k] > 0).any()
        )


def test_a_task_trains_its_column_its_module_and_its_critic_and_nothing_else() -> None:
    life = Life([CompoNet(columns=COLUMNS)])
    rows = {"encoder.layers.0.weight": 9, "encoder.layers.2.bias": 8, "cell.output_state": 8, "cell.output_bias": 8}
    for k, task in enumerate([2, 0, 3]):
        life.start(task)
        before = life.values()
        life.train(task)
        after, column = life.values(), torch.arange(8) * COLUMNS // 8
        for name, size in rows.items():
            moved = (after[name] != before[name]).view(size, -1).any(1)
            assert torch.equal(moved, torch.arange(size) * COLUMNS // size == k), name
        for name in (n for n in after if n.startswith("actor.") and n != "actor.current"):
            moved = (after[name] != before[name]).view(4, -1).any(1)
            assert torch.equal(moved, torch.arange(4) == k), name
        assert torch.equal(after["actor.current"], torch.eye(4)[k])
        heard = after["actor.linear.weight"].view(4, -1, 8)[k].abs().sum(0) > 0
        assert torch.equal(heard, column == k)
        assert torch.equal(after["critic.weight"][0] != 0, column == k)


def test_a_module_takes_over_what_an_earlier_one_would_do_if_it_is_told_to() -> None:
    """Its output attention alone, on the first of two policies."""
    life, said = lived(CompoNet(columns=COLUMNS), [0, 1, 2])
    actor = life.policy.actor
    assert isinstance(actor, ComposedHead)
    chunk = random_chunk(life.policy, 7, 4, seed=99)
    with torch.no_grad():
        block = slice(2 * actor.HIDDEN * 3, 3 * actor.HIDDEN * 3)
        actor.linear.weight[block] = 0.0
        actor.linear.bias[block] = 0.0
        actor.linear.bias[2 * actor.HIDDEN * 3] = 1e4
        actor.block(actor.key_out, 2)[0] = 0.0
        actor.block(actor.key_out, 2)[0, 0] = -1.0  # the position's sine is 0, then sin 1
        actor.block(actor.weight, 2).zero_()
        actor.block(actor.bias, 2).zero_()
        now = life.policy.sequence(chunk, chunk.state).policy
    first = said[0][..., :-1].softmax(-1)
    differ = (now - first).abs().amax(-1)
    score = first[..., 0] - said[1][..., :-1].softmax(-1)[..., 0] - torch.sin(torch.tensor(1.0))
    assert bool((score < -0.02).any())
    torch.testing.assert_close(differ[score < -0.02], torch.zeros(int((score < -0.02).sum())), rtol=0, atol=1e-5)


def test_a_task_without_a_column_has_a_module_that_reads_all_of_them() -> None:
    life, said = lived(CompoNet(columns=2), [0, 1, 2])
    before = life.values()
    life.train(2, 2)
    after = life.values()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {n for n in moved if not n.startswith("actor.")} == {"critic.weight", "critic.bias"}
    assert bool((after["actor.linear.weight"].view(4, -1, 8)[2].abs().sum(0) > 0).all())
    assert all(torch.equal(life.seen(task), then) for task, then in said.items())


def test_columns_must_fit_every_layer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"componet: cell has 6 units, too few for 7 columns"):
        make_trainer(tmp_path, strategy=[{"kind": "componet", "columns": 7}])


@pytest.mark.parametrize("other", ["uer", "nmc"])
def test_strategies_that_take_the_actor_s_rows_apart_are_refused_beside_it(other: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"strategy {other}: .*composes policies"):
        make_trainer(tmp_path, strategy=["componet", other])


def test_a_trained_run_can_neither_take_it_up_nor_leave_it() -> None:
    for kinds in ((["ewc"], ["componet"]), (["componet", "l2_init"], ["l2_init"])):
        old, new = (make_config(strategy=each) for each in kinds)
        with pytest.raises(ConfigError, match="one of the two has an actor of its own; start a new run"):
            changes.check(changes.between(old, new), old, new, 100)
    old, new = (make_config(strategy=each) for each in (["componet"], ["componet", "l2_init"]))
    changes.check(changes.between(old, new), old, new, 100)
