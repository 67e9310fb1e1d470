"""Cells made of cells: what their parts hear, and which of their gradients are exact; cells of torchrecurrent."""

from __future__ import annotations

import builtins
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent import registry
from lifelong.agent.cells import torchrecurrent
from lifelong.agent.cells.base import Cell
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.parts import PartsEngine, engine_for
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.session import gradient_report
from tests.agent.gradients.chunks import (
    B,
    chunked_gradient,
    history,
    max_relative_error,
    split,
    whole_history_gradient,
)
from tests.agent.support import make_config, make_policy, make_trainer, run

STACK: dict[str, Any] = {"kind": "stack", "layers": ["min_gru", {"kind": "rtu", "size": 3}, "elstm"], "residual": False}
ENSEMBLE: dict[str, Any] = {"kind": "ensemble", "cells": ["elstm", {"kind": "lru", "size": 3}, "gru"]}


def policy_of(spec: dict[str, Any]) -> Policy:
    policy = make_policy(spec, 6, observation=4)
    with torch.no_grad():
        for part in policy.cell.parts:  # type: ignore[union-attr]
            if hasattr(part, "weight_recurrent"):
                part.weight_recurrent.normal_()
    return policy.double()


@pytest.mark.parametrize("only_pass", [False, True])
@pytest.mark.parametrize("spec", [STACK, ENSEMBLE], ids=["stack", "ensemble"])
def test_parts_that_nobody_hears_have_the_gradient_of_the_whole_history_and_the_others_do_not(
    spec: dict[str, Any], only_pass: bool
) -> None:
    policy = policy_of(spec)
    data = history(policy, 7, 3)
    parts = split(policy, data, 7)
    expected = whole_history_gradient(policy, data, parts)
    engine = engine_for({"kind": "rtrl"}, policy.cell, B)
    rtrl = chunked_gradient(policy, parts, engine, only_pass=only_pass)
    bptt = chunked_gradient(policy, parts, engine_for({"kind": "bptt"}, policy.cell, B))
    exact = [f"cell.{name}" for name in engine.exact_parameters()]
    assert {name.split(".")[2] for name in exact} == ({"2"} if spec is STACK else {"0", "1"})
    assert max_relative_error(rtrl, expected, exact) <= 1e-10
    assert all(max_relative_error(bptt, expected, [name]) > 1e-3 for name in exact)
    below = [n for n in expected if n.startswith("cell.parts.0.")] if spec is STACK else []
    for name in below:  # what it remembers of its own layer is exact, what the layers above remember of it is cut off
        assert max_relative_error(rtrl, expected, [name]) > 1e-6
    others = [n for n in expected if n.startswith("cell.parts.2.")] if spec is ENSEMBLE else []
    assert all(torch.equal(rtrl[name], bptt[name]) for name in others)  # the GRU is truncated under both
    assert len(below) + len(others) >= 2


def test_a_layer_hears_the_normalised_layer_below_and_is_added_to_it() -> None:
    cell: Any = registry.build("cell", {"kind": "stack", "size": 5, "layers": ["gru", "min_gru"]}, 3)
    x, state = torch.randn(4, 3), torch.randn(4, 10)
    y, after = cell.step(x, state)
    lower, h = cell.parts[0].step(x, state[:, :5])
    norm = torch.nn.LayerNorm(5, elementwise_affine=False)
    upper, c = cell.parts[1].step(norm(lower), state[:, 5:])
    torch.testing.assert_close(y, lower + upper)
    torch.testing.assert_close(after, torch.cat([h, c], -1))


def test_a_stack_that_hears_itself_alone_is_the_layers_of_torch() -> None:
    cell: Any = registry.build(
        "cell", {"kind": "stack", "size": 5, "layers": ["gru"] * 3, "norm": "none", "residual": False}, 4
    )
    oracle = torch.nn.GRU(4, 5, num_layers=3)
    with torch.no_grad():
        for k, part in enumerate(cell.parts):
            for name, ours in (("ih", part.input), ("hh", part.hidden)):
                getattr(oracle, f"weight_{name}_l{k}").copy_(ours.weight)
                getattr(oracle, f"bias_{name}_l{k}").copy_(ours.bias)
        x, state = torch.randn(6, 2, 4), torch.randn(2, 15)
        y, after = cell.sequence(x, state, torch.zeros(6, 2, dtype=torch.bool))
        expected, last = oracle(x, torch.stack(state.split(5, -1)))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(after, torch.cat(last.unbind(0), -1), rtol=0, atol=1e-5)


def test_an_ensemble_shares_its_units_out_and_says_what_its_cells_say() -> None:
    cell: Any = registry.build("cell", {"kind": "ensemble", "size": 8, "cells": ["gru", "lstm", "rtu"]}, 3)
    assert [part.units for part in cell.parts] == [3, 3, 2] and cell.output_size == 3 + 3 + 4
    x, state = torch.randn(2, 3), torch.randn(2, 3 + 6 + 4)
    y, _ = cell.step(x, state)
    alone = [part.step(x, s)[0] for part, s in zip(cell.parts, state.split([3, 6, 4], -1), strict=True)]
    torch.testing.assert_close(y, torch.cat(alone, -1))
    cell.reset_units(state, torch.tensor([1, 4]))  # the second of the GRU and the second of the LSTM
    zero = (state == 0).all(0).nonzero().flatten().tolist()
    assert zero == [1, 3 + 1, 3 + 3 + 1]


def test_the_carry_of_reset_units_is_zero_in_the_part_that_has_them() -> None:
    policy = policy_of(ENSEMBLE)
    data = history(policy, 5, 3)
    engine: Any = engine_for({"kind": "rtrl"}, policy.cell, B)
    chunked_gradient(policy, split(policy, data, 5), engine)
    assert [type(each) for each in engine.engines] == [RTRL, RTRL, BPTT]
    before = {name: carry.clone() for name, carry in engine.state_dict().items()}
    engine.reset_units(torch.tensor([2 + 1]))  # two units of eLSTM, then those of LRU
    assert torch.equal(engine.state_dict()["0.weight"], before["0.weight"])
    carry = engine.state_dict()["1.weight"]
    assert not carry[:, :, 1].any() and torch.equal(carry[:, :, [0, 2]], before["1.weight"][:, :, [0, 2]])
    engine.load_state_dict(before)
    engine.reset(torch.tensor([True, False, False, False, True]))
    for name, carry in engine.state_dict().items():
        assert not carry[[0, 4]].any() and torch.equal(carry[1:4], before[name][1:4])


@pytest.mark.parametrize("spec", [STACK, ENSEMBLE], ids=["stack", "ensemble"])
def test_a_run_says_which_parts_are_exact_and_trains(spec: dict[str, Any], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, policy={"cell": {"size": 6, **spec}})
    assert isinstance(trainer.learner.engine, PartsEngine)
    exact, none, truncated = (line.split(": ")[1].split(", ") for line in gradient_report(trainer).splitlines())
    last = "cell.parts.2" if spec is STACK else "cell.parts.0"
    assert f"{last}.weight_input" in exact and f"{last}.output_bias" in none
    assert ("cell.parts.0.weight_input" in truncated) == (spec is STACK)
    before = {name: p.clone() for name, p in trainer.rollout.policy.named_parameters()}
    seen = run(trainer).seen
    assert seen["gradient/carry_max"] > 0
    assert all(not torch.equal(p, before[name]) for name, p in trainer.rollout.policy.named_parameters())


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"kind": "stack", "layers": ["gru", "lstm"]}, "rtrl can train no part of the cell.*dense.*bptt"),
        ({"kind": "stack", "layers": []}, "layers is empty"),
        ({"kind": "stack", "layers": ["gru", {"kind": "gru", "size": 4}]}, r"outputs of \[6, 4\]"),
        ({"kind": "stack", "layers": ["elstn"]}, "elstn.*elstm"),
        ({"kind": "ensemble", "cells": ["gru"] * 7}, "size is 6 for 7 cells"),
    ],
)
def test_what_cannot_be_put_together_is_refused_in_a_sentence(
    spec: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        make_trainer(tmp_path, policy={"cell": {"size": 6, **spec}})
    assert "\n" not in str(refusal.value)


def test_units_of_a_composite_are_not_reset_one_by_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="redo: the units of a cell that is made of several cells"):
        make_trainer(tmp_path, policy={"cell": {"size": 6, **STACK}}, strategy=[{"kind": "redo"}])


# ---- cells of torchrecurrent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MGUCell", "PeepholeLSTMCell", "JANETCell"])
def test_a_cell_of_torchrecurrent_is_that_cell_with_resets(name: str) -> None:
    package = importlib.import_module("torchrecurrent")
    torch.manual_seed(0)
    cell: Cell = registry.build("cell", {"kind": f"torchrecurrent:{name}", "size": 5}, 3)
    pair = cell.state_size == 10
    x, state, is_init = torch.randn(7, 2, 3), torch.randn(2, cell.state_size), torch.rand(7, 2) < 0.3
    y, final = cell.sequence(x, state, is_init)
    oracle = getattr(package, name)(3, 5)
    oracle.load_state_dict(cell.inner.state_dict())
    for t in range(7):
        state = state * ~is_init[t, :, None]
        after = oracle(x[t], tuple(state.split(5, -1)) if pair else state)
        state = torch.cat(after, -1) if pair else after
        torch.testing.assert_close(y[t], state[:, :5])
    torch.testing.assert_close(final, state)


def test_a_cell_of_torchrecurrent_trains_in_a_run(tmp_path: Path) -> None:
    importlib.import_module("torchrecurrent")
    trainer = make_trainer(tmp_path, policy={"cell": {"kind": "torchrecurrent:MGUCell", "size": 6}}, gradient="bptt")
    before = trainer.rollout.policy.cell.inner.weight_ih.clone()
    run(trainer)
    assert not torch.equal(before, trainer.rollout.policy.cell.inner.weight_ih)
    for strategy, sentence in (("redo", "units cannot be reset"), ("gpm", "nothing can be projected")):
        with pytest.raises(ConfigError, match=f"{strategy}: .*torchrecurrent.*{sentence}"):
            cell = {"kind": "torchrecurrent:MGUCell", "size": 6}
            make_trainer(tmp_path / strategy, policy={"cell": cell}, gradient="bptt", strategy=[{"kind": strategy}])


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrecurrent.adapted.cache_clear()
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torchrecurrent":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'lifelong\[torchrecurrent\]'"):
        registry.load("cell", "torchrecurrent:MGUCell")


def test_an_unknown_cell_of_torchrecurrent_names_the_nearest() -> None:
    importlib.import_module("torchrecurrent")
    with pytest.raises(ConfigError, match=r"MGUCel.*did you mean 'MGUCell'"):
        registry.load("cell", "torchrecurrent:MGUCel")


@pytest.mark.parametrize("kind", ["snap1", "eprop", "uoro"])
def test_every_part_has_the_engine_inside_the_chunk_too(kind: str) -> None:
    policy = policy_of(STACK)
    parts = split(policy, history(policy, 7, 3), 7)
    engine: Any = engine_for({"kind": kind}, policy.cell, B)
    got = chunked_gradient(policy, parts, engine)
    x, state, is_init = parts[0].x_TBD, parts[0].chunk.state, parts[0].chunk.is_init
    torch.testing.assert_close(engine.sequence(x, state, is_init), policy.cell.sequence(x, state, is_init))
    rtrl = chunked_gradient(policy, parts, engine_for({"kind": "rtrl"}, policy.cell, B))
    assert (max_relative_error(got, rtrl, list(rtrl)) <= 1e-10) == (kind != "uoro")  # its parts couple no two units
    assert bool(engine.approximate_parameters()) == (kind == "uoro") and bool(engine.exact_parameters()) == (
        kind != "uoro"
    )


def test_bptt_is_the_engine_of_every_cell_of_torchrecurrent_and_rtrl_is_refused() -> None:
    importlib.import_module("torchrecurrent")
    from lifelong.agent.runtime.build import check_gradient

    config = make_config(policy={"cell": {"kind": "torchrecurrent:MGUCell", "size": 6}}, gradient="rtrl")
    with pytest.raises(ConfigError, match="rtrl cannot train cell torchrecurrent:MGUCell"):
        check_gradient(config, RTRL, registry.load("cell", "torchrecurrent:MGUCell"))
