"""TRGP: scales by the exact gradient, old weights back bit for bit, trust by the share of the gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.trgp import TRGP, leading
from tests.agent.strategies.test_taps import B, T, old_experience
from tests.agent.support import act_through, make_context, make_policy, random_chunk, slice_steps

TAP = "cell.input"


def in_second_task(**options: Any) -> tuple[TRGP, Policy, Experience, Any]:
    """The strategy in task 1, with task 0 behind it; nothing was scaled yet."""
    policy = make_policy("elstm", 12, observation=12)
    strategy = TRGP(**{"threshold": 0.99, "chunks": 1, "trust": 0.0, **options})
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T, task=0)
    strategy.setup(ctx, 0)
    strategy.on_task_start(ctx)
    old = old_experience(policy)
    strategy.on_task_end(ctx, lambda chunks: iter([old] * chunks))
    ctx = make_context(policy, ctx.objective, B, T, task=1)
    strategy.on_task_start(ctx)
    return strategy, policy, old, ctx


def gradients(policy: Policy, seed: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=g) for n, p in policy.named_parameters()}


def scaled(strategy: TRGP, ctx: Any, policy: Policy, size: float = 0.05) -> None:
    """Let the scales move away from the identity."""
    strategy.transform_gradients(ctx, gradients(policy))
    deltas = {name: size * delta for name, delta in gradients(policy, 4).items()}
    strategy.transform_update(ctx, deltas)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter += deltas[name]


@pytest.mark.parametrize("carry", [True, False])
def test_the_scales_descend_the_gradient_of_one_graph_over_two_chunks(carry: bool) -> None:
    """The reference is autograd through W_t = W + W S (Q - I) S^T and 2 T steps, with a reset inside and one on the
    border, preconditioned by what a unit of Q moves in W_t; without the carry the same comparison fails."""
    strategy, policy, _, ctx = in_second_task()
    scaled(strategy, ctx, policy)
    (scale,) = strategy.scales[1][TAP].values()
    space, plain = strategy.spaces[TAP][0], strategy.plain[TAP]
    assert float((scale - torch.eye(len(scale))).abs().max()) > 1e-2

    long = random_chunk(policy, 2 * T, B, seed=8)
    long.is_init[:] = False
    long.is_init[0], long.is_init[3, 0], long.is_init[T, 1] = True, True, True
    probe = torch.randn(T, B, 3, generator=torch.Generator().manual_seed(9))

    # one graph: what is left of W_t when the scaled part is taken away does not depend on Q
    q = scale.clone().requires_grad_()
    now = strategy.taps.joint(TAP, dict(policy.named_parameters())).detach()
    fixed = now - plain @ space @ (scale - torch.eye(len(scale))) @ space.T
    joint = fixed + plain @ space @ (q - torch.eye(len(scale))) @ space.T
    weight, bias = joint[:, :-1], joint[:, -1]
    cell, state, outputs = policy.cell, long.state, []
    for t in range(2 * T):
        state = state * (~long.is_init[t]).unsqueeze(-1)
        drives = torch.nn.functional.linear(long.obs[t], weight, bias).split(cell.size, -1)
        state = cell.recurrence(drives, cell.weight_recurrent.unbind(0), state)
        outputs.append(torch.nn.functional.linear(cell.output(long.obs[t], state), policy.actor.linear.weight))
    (torch.stack(outputs[T:]) * probe).sum().backward()

    # ours: an engine whose carry has the first chunk
    first = slice_steps(long, 0, T, long.state, long.bootstrap_value)
    experience, last = act_through(policy, first)
    second = slice_steps(long, T, 2 * T, last, long.bootstrap_value)
    engine = RTRL(policy.cell, B)
    engine.advance(engine.trace(experience.x_TBD, experience.state_TBS, first.is_init))
    policy.zero_grad()
    said = policy.sequence(second, engine.attach(last) if carry else last)
    (said.policy * probe).sum().backward()
    deltas = {n: torch.zeros_like(p) if p.grad is None else -0.1 * p.grad for n, p in policy.named_parameters()}
    before = scale.clone()
    strategy.transform_update(ctx, deltas)
    assert q.grad is not None
    answers = plain @ space
    metric = answers.T @ answers
    wanted = -0.1 * torch.linalg.solve(metric + 1e-3 * metric.diagonal().mean() * torch.eye(len(metric)), q.grad)
    if carry:
        torch.testing.assert_close(scale - before, wanted, rtol=1e-3, atol=1e-5)
        step = strategy.taps.joint(TAP, deltas)  # W_t moved by what the scales make of it, and where there is room
        torch.testing.assert_close(step @ space, plain @ space @ (scale - before), rtol=1e-3, atol=1e-5)
    else:
        assert float((scale - before - wanted).abs().max()) > 0.05 * float(wanted.abs().max())


def test_what_the_scales_move_is_never_larger_than_the_step_and_is_the_nearest_that_they_can_make() -> None:
    strategy, policy, _, ctx = in_second_task()
    strategy.protected[TAP] = torch.eye(len(strategy.protected[TAP]))  # nothing but the scales may move it
    strategy.transform_gradients(ctx, gradients(policy))
    deltas = gradients(policy, 4)
    asked = strategy.taps.joint(TAP, deltas).clone()
    strategy.plain[TAP] = 30.0 * strategy.plain[TAP]  # answers as large as those of a trained layer
    strategy.transform_update(ctx, deltas)
    got = strategy.taps.joint(TAP, deltas)
    space, answers = strategy.spaces[TAP][0], strategy.plain[TAP] @ strategy.spaces[TAP][0]
    best = answers @ torch.linalg.lstsq(answers, asked @ space).solution @ space.T
    assert got.norm() <= asked.norm()
    assert (got - best).norm() < 0.1 * best.norm()


def test_what_the_old_task_had_comes_back_and_goes_again() -> None:
    strategy, policy, old, ctx = in_second_task(threshold=1 - 1e-13)
    with torch.no_grad():
        said = policy.sequence(old.chunk, old.chunk.state).policy
    scaled(strategy, ctx, policy)
    now = {n: p.detach().clone() for n, p in policy.named_parameters()}
    with torch.no_grad():
        other = policy.sequence(old.chunk, old.chunk.state).policy
        assert float((other - said).abs().max()) > 0.1  # task 1 uses what task 0 learned in a way of its own
        with strategy.evaluation_view(ctx, 0):
            torch.testing.assert_close(policy.sequence(old.chunk, old.chunk.state).policy, said, rtol=0, atol=1e-4)
        assert all(torch.equal(p, now[n]) for n, p in policy.named_parameters())
        strategy.on_task_start(make_context(policy, ctx.objective, B, T, task=0))
        torch.testing.assert_close(policy.sequence(old.chunk, old.chunk.state).policy, said, rtol=0, atol=1e-4)
        strategy.on_task_start(ctx)
        torch.testing.assert_close(policy.sequence(old.chunk, old.chunk.state).policy, other, rtol=0, atol=1e-4)


def test_old_tasks_are_trusted_by_their_share_of_the_gradient() -> None:
    strategy, policy, _, ctx = in_second_task(trust=0.5, regions=2)
    width = strategy.taps.joint(TAP, strategy.parameters).shape[1]
    axes = torch.eye(width)
    strategy.spaces = {TAP: {0: axes[:, :2], 2: axes[:, 2:4], 3: axes[:, 4:6], 4: axes[:, 6:8]}}
    found = gradients(policy)
    joint = torch.zeros_like(strategy.taps.joint(TAP, found))
    joint[0, 0], joint[0, 2], joint[0, 4], joint[0, 6] = 3.0, 5.0, 4.0, 1.0  # |G| = 7.14
    strategy.taps.write(TAP, joint, found)
    strategy.transform_gradients(ctx, found)
    assert list(strategy.scales[1][TAP]) == [2, 3]  # 0.70 and 0.56; 0.42 and 0.14 are too little
    assert all(torch.equal(scale, torch.eye(2)) for scale in strategy.scales[1][TAP].values())
    strategy.transform_gradients(ctx, gradients(policy))  # only once a task
    assert list(strategy.scales[1][TAP]) == [2, 3]
    one = TRGP(trust=0.5, regions=1)
    one.taps, one.spaces, one.current, one.device = strategy.taps, strategy.spaces, 1, strategy.device
    assert list(one._trusted(TAP, joint)) == [2]


def test_where_no_room_is_left_a_task_can_still_learn_by_what_it_shares() -> None:
    strategy, policy, _, ctx = in_second_task()
    for tap, basis in strategy.protected.items():
        strategy.protected[tap] = torch.eye(len(basis))
    strategy.transform_gradients(ctx, gradients(policy))
    deltas = gradients(policy, 4)
    strategy.transform_update(ctx, deltas)
    space = strategy.spaces[TAP][0]
    step = strategy.taps.joint(TAP, deltas)
    assert step.norm() > 1e-2
    torch.testing.assert_close(step, step @ space @ space.T, rtol=0, atol=1e-4)  # nowhere else


def test_the_space_of_a_task_lies_in_the_basis_and_holds_its_leading_directions() -> None:
    g = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(10, 6, generator=g, dtype=torch.float64))
    x = torch.randn(200, 6, generator=g, dtype=torch.float64) * torch.logspace(0, -2, 6) @ basis.T
    s = torch.linalg.svdvals(x).square()
    for threshold in (0.5, 0.9, 0.99):
        space = leading(basis, x.T @ x, threshold)
        count = int((s.cumsum(0) / s.sum() < threshold).sum()) + 1
        assert space.shape == (10, count)
        torch.testing.assert_close(space.T @ space, torch.eye(count, dtype=torch.float64))
        torch.testing.assert_close(basis @ (basis.T @ space), space)
        held = (x @ space).square().sum() / x.square().sum()
        assert float(held) == pytest.approx(float(s[:count].sum() / s.sum())) and held >= threshold


def test_it_needs_boundaries_and_the_task_id() -> None:
    strategy, *_ = in_second_task(every=100)
    assert strategy.needs_boundaries and strategy.needs_task_id and not strategy.clock_option


@pytest.mark.parametrize("options", [{"trust": -0.1}, {"trust": 1.1}, {"regions": 0}, {"threshold": 0.0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        TRGP(**options)
