"""PackNet: what a task keeps are its largest weights, and tasks share out the network."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from lifelong.agent.strategies.packnet import PackNet
from tests.agent.strategies.test_isolation import Life, lived
from tests.agent.support import act_through, random_chunk


@pytest.mark.parametrize("cell", ["elstm", "diagonal_lstm", "gru", "lstm"])
def test_after_all_tasks_each_owns_the_same_share_of_every_layer(cell: str) -> None:
    strategy = PackNet()
    life, _ = lived(strategy, [3, 1, 0, 2], cell=cell)
    masks = [strategy.masks[task] for task in strategy.order]
    matrices = {n for n, p in life.policy.named_parameters() if p.dim() > 1 and not n.startswith(("actor", "critic"))}
    assert set(masks[0]) == matrices - {f"cell.{n}" for n in life.policy.cell.elementwise_parameters()}
    for name, first in masks[0].items():
        owned = [int(first.sum()), *(int((b[name] & ~a[name]).sum()) for a, b in itertools.pairwise(masks))]
        assert sum(owned) == first.numel()
        assert all(abs(count - first.numel() / 4) <= 1 for count in owned), (name, owned)


def test_a_task_keeps_its_largest_weights_and_leaves_the_rest_as_zero() -> None:
    strategy = PackNet(keep=0.3)
    life = Life([strategy])
    life.start(0)
    life.train(0)
    before = life.values()
    life.start(1)
    for name, frozen in strategy.frozen.items():
        sizes = before[name].abs()
        assert int(frozen.sum()) == round(0.3 * frozen.numel())
        assert float(sizes[frozen].min()) >= float(sizes[~frozen].max())
        expected = torch.where(frozen, before[name], 0.0)
        assert torch.equal(life.policy.get_parameter(name), expected)
        assert torch.equal(strategy.movable[name], ~frozen)
    for name in strategy.owned:
        if not name.startswith(("actor.", "critic.")):  # goes on from the task before
            assert torch.equal(life.values()[name], before[name])


def test_a_task_that_was_pruned_early_trains_what_it_kept_until_its_end() -> None:
    strategy = PackNet(keep=0.5, prune_after=100)
    life = Life([strategy])
    life.start(0)
    experience, _ = act_through(life.policy, random_chunk(life.policy, 5, 4))
    strategy.after_chunk(replace(life.ctx(0), step=99), experience)
    assert not strategy.pruned
    life.train(0, 3)
    strategy.after_chunk(replace(life.ctx(0), step=100), experience)
    kept = {n: m.clone() for n, m in strategy.masks[0].items()}
    assert strategy.pruned == [0] and all(int(m.sum()) == round(m.numel() / 2) for m in kept.values())
    before = life.values()
    life.train(0, 3)
    for name, mask in kept.items():
        moved = life.policy.get_parameter(name) != before[name]
        assert bool(moved[mask].all()) and not bool(moved[~mask].any())
    end = life.outputs(0)
    life.start(1)
    assert torch.equal(life.seen(0), end)  # nothing is pruned a second time
    assert all(torch.equal(strategy.frozen[n], mask) for n, mask in kept.items())


def test_a_network_that_is_full_leaves_later_tasks_their_own_parameters() -> None:
    strategy = PackNet(keep=1.0)
    life, said = lived(strategy, [0, 1])
    assert not any(bool(m.any()) for m in strategy.movable.values())
    assert strategy.report()["free/encoder.layers.0.weight"] == 0.0
    assert not torch.equal(life.outputs(1), said[0])


@pytest.mark.parametrize("options", [{"keep": 1.5}, {"keep": -0.1}, {"prune_after": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        PackNet(**options)


def test_convolutions_are_shared_out_too() -> None:
    import gymnasium
    import numpy as np

    space = gymnasium.spaces.Box(0, 1, (1, 6, 6), np.float32)
    encoder = {"kind": "cnn", "channels": [3, 4], "hidden": 6}
    life, said = lived(PackNet(), [0, 1, 2], observation=space, encoder=encoder)
    assert {n for n in life.strategies[0].frozen if "convolutions" in n}  # type: ignore[attr-defined]
    assert all(torch.equal(life.seen(task), then) for task, then in said.items())
