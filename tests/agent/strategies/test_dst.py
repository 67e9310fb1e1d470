"""Dynamic sparse training: how many connections there are, which go, which come, and from what value."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from lifelong.agent.moments import moments
from lifelong.agent.strategies.dst import DST, erdos_renyi_kernel
from tests.agent.strategies.test_isolation import Life, lived
from tests.agent.support import act_through, random_chunk

GROWTHS: list[Literal["set", "rigl"]] = ["set", "rigl"]


# ---- how many --------------------------------------------------------------------------------------------------------


def test_erk_shares_out_the_weights_of_a_resnet_50() -> None:
    """The definition of Evci et al. 2020, section 3.1, on the layers of a ResNet-50: the total is that of the density,
    layers below 1 have one epsilon, and the others would be above 1 with it."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7)}
    width_in = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"{stage}.{block}"
            shapes[f"{name}.a"], shapes[f"{name}.b"] = (width, width_in, 1, 1), (width, width, 3, 3)
            shapes[f"{name}.c"] = (4 * width, width, 1, 1)
            if not block:
                shapes[f"{name}.down"] = (4 * width, width_in, 1, 1)
            width_in = 4 * width
    shapes["fc"] = (1000, 2048)
    density = erdos_renyi_kernel(shapes, 0.2)
    total = sum(map(math.prod, shapes.values()))
    assert total == 25_502_912  # weights of ResNet-50, without biases and batch normalisation
    assert sum(density[n] * math.prod(s) for n, s in shapes.items()) == pytest.approx(0.2 * total, rel=1e-9)
    free = [n for n in shapes if density[n] < 1]
    assert 0 < len(free) < len(shapes)
    scales = {density[n] * math.prod(shapes[n]) / sum(shapes[n]) for n in free}  # one epsilon for all of them
    assert max(scales) == pytest.approx(min(scales), rel=1e-9)
    epsilon = scales.pop()
    assert all(epsilon * sum(shapes[n]) / math.prod(shapes[n]) >= 1 for n in shapes if n not in free)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9, 1.0])
def test_erk_of_two_matrices_is_the_closed_form(density: float) -> None:
    shapes = {"a": (10, 20), "b": (100, 300)}
    got = erdos_renyi_kernel(shapes, density)
    total = density * (200 + 30_000)
    epsilon = total / (30 + 400)
    expected = {"a": epsilon * 30 / 200, "b": epsilon * 400 / 30_000}
    if expected["a"] > 1:
        expected = {"a": 1.0, "b": min(1.0, (total - 200) / 30_000)}
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("cell", ["elstm", "gru"])
def test_the_number_of_connections_of_every_layer_is_exact_at_all_times(
    cell: str, distribution: Any, growth: Any
) -> None:
    strategy = DST(density=0.3, distribution=distribution, growth=growth, period=1, fraction=0.5)
    life = Life([strategy], cell=cell)
    shapes = {n: tuple(x.shape) for n, x in strategy.store.items()}
    share = erdos_renyi_kernel(shapes, 0.3) if distribution == "erk" else dict.fromkeys(shapes, 0.3)
    counts = {n: round(share[n] * math.prod(s)) for n, s in shapes.items()}
    moved = 0
    for task in range(3):
        life.start(task)
        for _ in range(4):
            before = {n: m.clone() for n, m in strategy.masks[task].items()}
            life.train(task, 1)
            for name, mask in strategy.masks[task].items():
                assert int(mask.sum()) == counts[name]
                assert not bool(life.policy.get_parameter(name)[~mask].any())
                changed = int((mask & ~before[name]).sum())
                free = ~(before[name] | strategy.frozen[name])
                movable = before[name] & ~strategy.frozen[name]
                assert changed == min(int(0.5 * int(movable.sum())), int(free.sum()))
                moved += changed
    assert strategy.report()["moved"] == moved > 0
    assert sum(counts.values()) == pytest.approx(0.3 * sum(map(math.prod, shapes.values())), rel=0.02)


# ---- which -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", GROWTHS)
def test_the_smallest_go_and_those_that_come_begin_at_zero_without_moments(growth: Any) -> None:
    strategy = DST(density=0.3, growth=growth, period=5, fraction=0.4)
    life, _ = lived(strategy, [0, 1])
    life.start(2)
    life.train(2, 4)
    masks = {n: m.clone() for n, m in strategy.masks[2].items()}
    movable = {n: m.clone() for n, m in strategy.movable.items()}
    experience, _ = act_through(life.policy, random_chunk(life.policy, 5, 4))
    before, gradient = life.values(), {n: g.clone() for n, g in strategy.gradient.items()}
    strategy.after_chunk(life.ctx(2), experience)
    for name, mask in strategy.masks[2].items():
        gone, come = masks[name] & ~mask, mask & ~masks[name]
        size = before[name].abs()
        assert not bool((gone & strategy.frozen[name]).any()) and not bool((come & strategy.frozen[name]).any())
        if not bool(gone.any()):
            continue
        assert float(size[gone].max()) <= float(size[movable[name] & ~gone].min())
        if growth == "rigl":
            rest = ~(masks[name] | strategy.frozen[name] | come)
            assert float(gradient[name].abs()[come].min()) >= float(gradient[name].abs()[rest].max())
            assert not bool(strategy.gradient[name].any())
        parameter = life.policy.get_parameter(name)
        assert not bool(parameter[come | gone].any())
        stay = mask & ~come
        assert torch.equal(parameter[stay], before[name][stay])
        for kept in moments(life.optimizer, parameter).values():  # type: ignore[arg-type]
            assert not bool(kept[come | gone].any()) and bool(kept[stay & movable[name]].any())
    life.train(2, 1)
    assert all(bool((life.policy.get_parameter(n) != before[n])[strategy.movable[n]].all()) for n in masks)


def test_the_gradient_that_grows_is_the_dense_one_summed_over_all_updates() -> None:
    """Entries that are not in the mask have a gradient too; it is not that of the masked step."""
    strategy = DST(density=0.2, period=100)
    life = Life([strategy])
    life.start(0)
    seen: dict[str, torch.Tensor] = {}
    hook = strategy.transform_gradients

    def remember(ctx: Any, gradients: Any) -> None:
        for name in strategy.store:
            seen[name] = seen.get(name, torch.zeros(())) + gradients[name].clone()
        hook(ctx, gradients)

    strategy.transform_gradients = remember  # type: ignore[method-assign]
    life.train(0, 3)
    for name, total in strategy.gradient.items():
        torch.testing.assert_close(total, seen[name])
        assert bool(total[~strategy.masks[0][name]].any())


def test_a_new_task_reads_some_of_what_is_frozen_and_draws_the_rest_anew() -> None:
    strategy = DST(density=0.5, period=1000)
    life, _ = lived(strategy, [0])
    first = life.values()
    life.start(1)
    for name, frozen in strategy.frozen.items():
        mask, value = strategy.masks[1][name], life.policy.get_parameter(name)
        assert bool((mask & frozen).any()) and bool((mask & ~frozen).any())
        assert torch.equal(value[mask & frozen], first[name][mask & frozen])
        assert not bool((value == strategy.view(0)[name])[mask & ~frozen].any())
    # of independent masks of density 1/2 half of the frozen entries are read, within 4 standard deviations
    shared = sum(int((strategy.masks[1][n] & f).sum()) for n, f in strategy.frozen.items())
    frozen = sum(int(f.sum()) for f in strategy.frozen.values())
    assert abs(shared / frozen - 0.5) < 4 * (0.25 / frozen) ** 0.5


def test_what_is_drawn_has_the_variance_of_a_dense_layer() -> None:
    strategy = DST(density=0.25, period=1000)
    life = Life([strategy], encoder={"kind": "mlp", "hidden": [200, 300]})
    dense = life.values()["encoder.layers.2.weight"]
    for task in range(2):
        life.start(task)
        mask, value = strategy.movable["encoder.layers.2.weight"], life.values()["encoder.layers.2.weight"]
        ratio = value[mask].square().sum() / mask.sum() / dense.square().mean()
        assert abs(float(ratio) - 4) < 0.2


def test_the_share_that_moves_falls_as_a_cosine() -> None:
    strategy = DST(fraction=0.4, anneal=1000)
    life = Life([strategy])
    strategy.on_task_start(replace(life.ctx(0), step=500))
    got = [strategy.fraction_at(step) for step in (500, 750, 1000, 1250, 1500, 9000)]
    assert got == pytest.approx([0.4, 0.2 + 0.2 * 0.5**0.5, 0.2, 0.2 - 0.2 * 0.5**0.5, 0.0, 0.0])


@pytest.mark.parametrize(
    "options", [{"density": 0.0}, {"density": 1.1}, {"fraction": 2.0}, {"period": 0}, {"growth": "x"}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        DST(**options)
