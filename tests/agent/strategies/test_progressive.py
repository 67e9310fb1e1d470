"""Progressive networks: no column hears a later one, and each is trained by its task alone."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from lifelong.agent.cells.base import Cell
from lifelong.agent.errors import ConfigError
from lifelong.agent.strategies.progressive import Progressive
from tests.agent.strategies.test_isolation import Life, lived
from tests.agent.support import OWN_CELLS, UNIT_CELLS, act_through, make_trainer, random_chunk

COLUMNS = 3


@pytest.mark.parametrize("cell", UNIT_CELLS + OWN_CELLS)
def test_what_a_column_says_depends_on_no_later_column(cell: str) -> None:
    """By autograd, through the encoder and over time: units of column k on every parameter and every unit before."""
    strategy = Progressive(columns=COLUMNS)
    life = Life([strategy], cell=cell, tasks=COLUMNS)
    for task in range(COLUMNS):
        life.start(task)
        life.train(task, 3)
    policy, layers = life.policy, {"encoder.layers.0": 9, "encoder.layers.2": 8, "cell": 8}
    columns = {name: torch.arange(size) * COLUMNS // size for name, size in layers.items()}
    chunk = random_chunk(policy, 5, 4)
    x = policy.encoder(chunk.obs.flatten(0, 1))
    features = columns["encoder.layers.2"]
    for k in range(COLUMNS):
        said = x[:, features == k].square().sum()
        rows = torch.autograd.grad(said, policy.get_parameter("encoder.layers.0.weight"), retain_graph=True)[0]
        heard = rows.abs().sum(1) > 0
        assert bool(heard.any()) and not bool(heard[columns["encoder.layers.0"] > k].any())
    state = torch.randn(4, policy.cell.state_size, requires_grad=True)
    x_TBD = x.detach().view(5, 4, -1).requires_grad_()
    y, _ = Cell.sequence(policy.cell, x_TBD, state, torch.zeros(5, 4, dtype=torch.bool))
    for k in range(COLUMNS):
        said = y.unflatten(-1, (-1, 8))[..., columns["cell"] == k].square().sum()
        dx, dstate = torch.autograd.grad(said, (x_TBD, state), retain_graph=True)
        assert not bool(dx[..., :8][..., features > k].any())
        by_unit = dstate[:, : policy.cell.unit_state].view(4, -1, 8).abs().sum((0, 1))
        assert not bool(by_unit[columns["cell"] > k].any()) and bool((by_unit[columns["cell"] == k] > 0).any())
        if k:
            assert bool(dx[..., :8][..., features < k].any())  # columns before are read


def test_a_task_trains_its_column_alone_and_its_actor_reads_no_later_one() -> None:
    strategy = Progressive(columns=COLUMNS)
    life = Life([strategy])
    rows = {"encoder.layers.0.weight": 9, "encoder.layers.2.bias": 8, "cell.output_state": 8, "cell.output_bias": 8}
    for k, task in enumerate([2, 0, 3]):
        life.start(task)
        before = life.values()
        life.train(task)
        for name, size in rows.items():
            moved = (life.values()[name] != before[name]).view(size, -1).any(1)
            assert torch.equal(moved, torch.arange(size) * COLUMNS // size == k), name
        moved = (life.values()["cell.weight_input"] != before["cell.weight_input"]).any(1).view(2, 8)
        assert torch.equal(moved, (torch.arange(8) * COLUMNS // 8 == k).expand(2, 8))
        later = torch.arange(8) * COLUMNS // 8 > k
        for head in ("actor.linear.weight", "critic.weight"):
            weight = life.policy.get_parameter(head)
            assert not bool(weight[:, later].any()) and bool(weight[:, ~later].all())


def test_units_of_later_columns_keep_their_first_values_until_their_turn() -> None:
    strategy = Progressive(columns=COLUMNS)
    life = Life([strategy])
    drawn = life.values()["encoder.layers.0.weight"]
    for task in range(COLUMNS):
        life.start(task)
        column = torch.arange(9) * COLUMNS // 9 == task
        assert torch.equal(life.values()["encoder.layers.0.weight"][column], drawn[column])
        life.train(task)


def test_a_task_without_a_column_trains_its_heads_alone() -> None:
    strategy = Progressive(columns=2)
    life, said = lived(strategy, [0, 1, 2])
    before = life.values()
    life.train(2, 2)
    moved = {name for name, value in life.values().items() if not torch.equal(value, before[name])}
    assert moved == {"actor.linear.weight", "actor.linear.bias", "critic.weight", "critic.bias"}
    assert all(torch.equal(life.seen(task), then) for task, then in said.items())


def test_columns_are_one_a_task_by_default_and_must_fit_every_layer(tmp_path: Path) -> None:
    strategy = Progressive()
    Life([strategy], tasks=4)
    assert strategy.count == 4
    with pytest.raises(ConfigError, match=r"progressive: cell has 6 units, too few for 7 columns"):
        make_trainer(tmp_path, strategy=[{"kind": "progressive", "columns": 7}])
    with pytest.raises(ValueError, match="columns is -1"):
        Progressive(columns=-1)


def test_columns_stay_where_they_were_when_a_task_is_added() -> None:
    life, _ = lived(Progressive(), [0, 1], tasks=2)
    later = Life([Progressive()], tasks=3)
    strategy = later.strategies[0]
    assert isinstance(strategy, Progressive) and strategy.count == 3
    strategy.load_state_dict(life.strategies[0].state_dict())
    assert strategy.count == 2
    assert strategy.level["encoder.layers.0.bias"].tolist() == [0] * 5 + [1] * 4


def test_channels_of_a_convolution_are_units_too() -> None:
    space = gymnasium.spaces.Box(0, 1, (1, 6, 6), np.float32)
    encoder = {"kind": "cnn", "channels": [4, 4], "hidden": 6}
    life, said = lived(Progressive(columns=2), [0, 1], observation=space, encoder=encoder)
    policy = life.policy
    assert torch.equal(life.seen(0), said[0])
    life.start(2)
    image = act_through(policy, random_chunk(policy, 2, 2))[0].chunk.obs.flatten(0, 1)
    features = policy.encoder(image)
    gradient = torch.autograd.grad(features[:, :3].sum(), policy.get_parameter("encoder.convolutions.2.weight"))[0]
    assert not bool(gradient[2:].any()) and bool(gradient[:2].any())
