"""Hare and Tortoise: averages in closed form, jumps, whose performance is seen, and gradients after a jump."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.hare_tortoise import HareTortoise
from tests.agent.gradients.test_rtrl import EXACT, B, double_policy, split
from tests.agent.strategies.test_units import Steps
from tests.agent.support import make_context, make_trainer, random_chunk, run


def test_the_tortoise_is_the_average_of_the_hares_way_and_the_hare_jumps_back(tmp_path: Path) -> None:
    spec = {"kind": "hare_tortoise", "momentum": 0.8, "period": 5}
    trainer = make_trainer(tmp_path, strategy=[spec], optimizer={"kind": "adam", "lr": 0.02})
    strategy, policy = trainer.strategies[0], trainer.rollout.policy
    assert isinstance(strategy, HareTortoise)
    name, way = "cell.weight_input", []
    parameter = policy.get_parameter(name)
    slow, after = parameter.detach().clone(), strategy.after_update

    def listen(ctx: Context) -> None:
        nonlocal slow
        slow = 0.8 * slow + 0.2 * parameter.detach()
        after(ctx)
        torch.testing.assert_close(strategy.slow[name], slow)
        way.append(torch.equal(parameter, strategy.slow[name]))

    strategy.after_update = listen  # type: ignore[method-assign]
    seen = run(trainer).seen
    assert way == [False, False, False, False, True] * 2 + [False] * 2
    assert seen["strategy/hare_tortoise/jumps"] == 2.0 and seen["strategy/hare_tortoise/ahead"] > 0


@pytest.mark.parametrize("who", ["hare", "tortoise"])
def test_the_one_that_is_asked_for_is_evaluated_and_the_hare_stays_bit_for_bit(who: str, tmp_path: Path) -> None:
    spec = {"kind": "hare_tortoise", "evaluate": who}
    trainer = make_trainer(tmp_path, strategy=[spec], optimizer={"kind": "adam", "lr": 0.02})
    run(trainer, until=128)
    strategy, policy = trainer.strategies[0], trainer.rollout.policy
    assert isinstance(strategy, HareTortoise)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    with strategy.evaluation_view(trainer.context(), 0):
        expected = before if who == "hare" else strategy.slow
        assert all(torch.equal(p, expected[name]) for name, p in policy.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    assert not torch.equal(strategy.slow["cell.weight_input"], before["cell.weight_input"])


@pytest.mark.parametrize("cell", EXACT)
def test_the_gradient_is_exact_after_a_jump_on_a_border(cell: str) -> None:
    """The reference is one graph over both chunks: the new parameters are the old ones moved by a constant."""
    policy = double_policy(cell)
    strategy = HareTortoise(momentum=0.5, period=1)
    ctx = make_context(policy, ActorCritic(policy.distribution), B, 6)
    strategy.setup(ctx, 0)
    for slow in strategy.slow.values():
        slow += 0.3 * torch.randn(slow.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    data = random_chunk(policy, 12, B, dtype=torch.float64)
    data.is_init[:] = False
    data.is_init[3, 3] = data.is_init[6, 4] = True  # inside the first chunk, and on the border
    first, second = split(policy, data, 6)
    rtrl, bptt = RTRL(policy.cell, B), BPTT(policy.cell, B)  # type: ignore[arg-type]
    engines: list[GradientEngine] = [rtrl, bptt]
    names = [f"cell.{n}" for n in rtrl.exact_parameters() if policy.cell.get_parameter(n).numel()]
    old = {name: policy.get_parameter(name).detach().clone().requires_grad_() for name in names}
    for engine in engines:
        engine.advance(engine.trace(first.x_TBD, first.state_TBS, first.chunk.is_init))
    strategy.after_update(ctx)
    steps, call = Steps(policy.cell), torch.func.functional_call
    memory = call(steps, old, (first.x_TBD, first.chunk.state, first.chunk.is_init))[1]
    moved = {name: old[name] + (policy.get_parameter(name) - old[name]).detach() for name in names}
    assert all(not torch.equal(moved[name], old[name]) for name in names)
    y, _ = call(steps, moved, (second.x_TBD, memory, second.chunk.is_init))
    weighting = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = torch.autograd.grad((y.square() * weighting).sum(), list(old.values()))

    def error(engine: GradientEngine) -> float:
        y, _ = policy.cell.sequence(second.x_TBD, engine.attach(memory.detach()), second.chunk.is_init)
        got: tuple[Tensor, ...] = torch.autograd.grad(
            (y.square() * weighting).sum(), [policy.get_parameter(name) for name in names]
        )
        return max(float((g - e).abs().max() / e.abs().max()) for g, e in zip(got, expected, strict=True))

    assert error(rtrl) < 1e-10
    assert error(bptt) > 1e-3  # has no history
