"""The learned update rule: it does not care how units are ordered, and says what it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lifelong.agent.modules.unf import SHIPPED, Groups, Rule
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.rebasin import permuted
from lifelong.agent.strategies.unf import MOMENTS, SQUARES, UNF
from lifelong.agent.strategies.units import layers_of
from tests.agent.support import UNIT_CELLS, make_context, make_policy


def at_work(policy: Policy, seed: int = 1) -> tuple[UNF, Context]:
    """With a rule that has much to say."""
    strategy = UNF()
    torch.manual_seed(seed)
    strategy.rule = Rule().requires_grad_(False)
    for parameter in strategy.rule.parameters():
        parameter.normal_(std=0.3)
    ctx = make_context(policy, ActorCritic(policy.distribution), 4, 5)
    strategy.setup(ctx, 0)
    return strategy, ctx


def drawn(policy: Policy, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in policy.named_parameters()}


def stepped(
    strategy: UNF, ctx: Context, gradients: list[dict[str, Tensor]], steps: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The last of several steps, as it is made."""
    for gradient, step in zip(gradients, steps, strict=True):
        deltas = {name: x.clone() for name, x in step.items()}
        for name, parameter in ctx.policy.named_parameters():
            parameter.grad = gradient[name].clone()
            parameter.data.add_(deltas[name])
        strategy.transform_update(ctx, deltas)
        for name, parameter in ctx.policy.named_parameters():
            parameter.data.add_(deltas[name] - step[name])
    return deltas


@pytest.mark.parametrize("cell", UNIT_CELLS)
def test_with_units_in_another_order_it_makes_the_same_steps_in_that_order(cell: str) -> None:
    """Gradients, steps, parameters and what is kept of the past: all permuted, through three updates."""
    policy, other = (make_policy(cell, encoder={"kind": "mlp", "hidden": [6, 7]}) for _ in range(2))
    layers, generator = layers_of(policy), torch.Generator().manual_seed(2)
    picks = {layer.name: torch.randperm(layer.size, generator=generator) for layer in layers}
    orders = {name: torch.eye(len(pick))[pick] for name, pick in picks.items()}

    def turned(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return permuted(values, layers, orders)

    here = {name: p.detach() for name, p in policy.named_parameters()}
    with torch.no_grad():
        for name, value in turned(here).items():
            other.get_parameter(name).copy_(value)
    gradients, steps = ([drawn(policy, base + i) for i in range(3)] for base in (10, 20))
    (mine, ctx), (theirs, ctx_other) = at_work(policy), at_work(other)
    got = stepped(mine, ctx, gradients, steps)
    same = stepped(theirs, ctx_other, [turned(g) for g in gradients], [turned(s) for s in steps])
    for name, expected in turned(got).items():
        torch.testing.assert_close(same[name], expected, rtol=1e-3, atol=1e-4)
    assert max(float((got[name] - steps[-1][name]).abs().max()) for name in got) > 0.1
    wrong = stepped(at_work(other)[0], ctx_other, gradients, steps)
    assert max(float((wrong[name] - expected).abs().max()) for name, expected in turned(got).items()) > 0.1


def test_an_entry_hears_the_units_that_make_and_read_it_and_its_tensor() -> None:
    """By autograd through one layer: what one entry says depends on others by means alone."""
    policy = make_policy("elstm", encoder={"kind": "mlp", "hidden": [6]})
    strategy, _ = at_work(policy)
    where, count = strategy.where, len(strategy.where.tensor.place)
    names = [n for n, p in policy.named_parameters() for _ in range(p.numel())]
    layer = strategy.rule.first
    for parameter in (layer.own.weight, layer.of_tensor.weight):
        parameter.zero_()
    x_PC = torch.randn(count, layer.own.in_features, requires_grad=True)
    entry = names.index("encoder.layers.0.weight")  # unit 0 of the encoder makes it; it reads an input
    heard = torch.autograd.grad(layer(x_PC, where)[entry].sum(), x_PC)[0].abs().sum(1) > 0
    unit = where.writer.place[entry]
    assert torch.equal(heard, (where.writer.place == unit) | (where.reader.place == unit))
    assert {n for n, h in zip(names, heard.tolist(), strict=True) if h} == {
        "encoder.layers.0.weight",
        "encoder.layers.0.bias",
        "cell.weight_input",
        "cell.output_input",
    }


def test_means_over_groups_leave_out_what_is_in_none() -> None:
    groups = Groups.of(torch.tensor([0, 2, 0, 3, 2]), 3)
    mean = groups.mean(torch.tensor([[1.0], [2], [5], [100], [4]]))
    assert mean.flatten().tolist() == [3, 0, 3, 0]
    assert groups.spread(mean).flatten().tolist() == [3, 3, 3, 0, 3]


@pytest.mark.parametrize("silent", ["rule", "strength"])
def test_a_new_rule_and_a_strength_of_zero_leave_every_step_as_it_is(silent: str) -> None:
    policy = make_policy("elstm")
    strategy, ctx = at_work(policy)
    if silent == "rule":
        strategy.rule = Rule().requires_grad_(False)
    else:
        strategy.strength = 0.0
    step = drawn(policy, 3)
    got = stepped(strategy, ctx, [drawn(policy, 4)], [step])
    assert all(torch.equal(got[name], step[name]) for name in step)


def test_running_means_are_those_of_all_gradients_and_forget_what_begins_anew() -> None:
    policy = make_policy("elstm")
    strategy, ctx = at_work(policy)
    gradients = [drawn(policy, i) for i in range(3)]
    stepped(strategy, ctx, gradients, [drawn(policy, 9)] * 3)
    flat = [torch.cat([g[name].flatten() for name in strategy.parameters]) for g in gradients]
    for kept, power in ((MOMENTS, 1), (SQUARES, 2)):
        for name, decay in kept.items():
            expected = sum((1 - decay) * decay ** (2 - i) * g**power for i, g in enumerate(flat))
            torch.testing.assert_close(strategy.kept[name], torch.as_tensor(expected))
    mask = torch.zeros_like(policy.critic.weight, dtype=torch.bool)
    mask[0, 2] = True
    strategy.on_reset(ctx, {"critic.weight": mask})
    for x in strategy.kept.values():
        assert torch.equal(strategy.split(x)["critic.weight"] == 0, mask)
        assert bool((strategy.split(x)["critic.bias"] != 0).all())


def test_the_rule_that_is_shipped_is_small_and_says_something() -> None:
    rule = Rule.load(SHIPPED)
    assert SHIPPED.stat().st_size < 16_000
    assert any(bool(p.any()) for p in rule.last.parameters())


def test_a_rule_survives_its_file(tmp_path: Path) -> None:
    rule = at_work(make_policy("elstm"))[0].rule
    rule.save(tmp_path / "rule.json")
    for a, b in zip(Rule.load(tmp_path / "rule.json").parameters(), rule.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", [None, "no json", "[1, 2]", '{"first.own.weight": [[1.0]]}'])
def test_a_file_that_is_no_rule_is_refused_in_a_sentence(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "rule.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=r"rule\.json holds no rule that benchmarks/unf\.py has written"):
        Rule.load(file)
