"""CLEAR: what is replayed, what is cloned, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.strategies.clear import CLEAR
from tests.agent.support import act_through, make_context, make_trainer, random_chunk, run
from tests.agent.support import filled as fill

B, T = 6, 4


def filled(**options: Any) -> tuple[CLEAR, Policy, Any]:
    """CLEAR with some real sequences of the current policy in its buffer."""
    clear = CLEAR(**{"capacity": 50, "start": 1, **options})
    return clear, *fill(clear, B, T)


@pytest.mark.parametrize(("ratio", "replayed"), [(0.5, 3), (1.0, 6), (2.0, 12)])
def test_replayed_copies_stand_after_the_live_ones_in_the_asked_proportion(ratio: float, replayed: int) -> None:
    clear, policy, ctx = filled(ratio=ratio)
    live = random_chunk(policy, T, B)
    both = clear.transform_batch(ctx, live)
    assert both.copies == B + replayed
    for name, tensor in vars(both.select(torch.arange(B))).items():
        assert torch.equal(tensor, getattr(live, name))
    stored = clear.replay.storage
    assert stored is not None
    for b in range(B, both.copies):  # every replayed copy is one of the stored sequences, with its own start state
        same = [
            r
            for r in range(clear.replay.size)
            if torch.equal(stored.obs[:, r], both.obs[:, b]) and torch.equal(stored.state[r], both.state[b])
        ]
        assert same


def test_nothing_is_replayed_before_the_buffer_has_started() -> None:
    clear, policy, ctx = filled(start=19)
    live = random_chunk(policy, T, B)
    assert clear.transform_batch(ctx, live) is live
    assert clear.extra_loss(ctx, live, policy.sequence(live, live.state), B) is None


def cloning(clear: CLEAR, policy: Policy, ctx: Any) -> float:
    batch = clear.transform_batch(ctx, random_chunk(policy, T, B))
    loss = clear.extra_loss(ctx, batch, policy.sequence(batch, batch.state), B)
    assert loss is not None
    return float(loss)


def test_cloning_is_zero_for_the_policy_that_acted_and_positive_once_it_has_changed() -> None:
    clear, policy, ctx = filled(policy_cloning=1.0, value_cloning=1.0)
    assert cloning(clear, policy, ctx) == pytest.approx(0.0, abs=1e-7)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1
    assert cloning(clear, policy, ctx) > 1e-3


def test_the_cloning_loss_is_the_formula_of_the_paper_on_replayed_steps_only() -> None:
    clear, policy, ctx = filled(policy_cloning=0.3, value_cloning=0.2, burn_in=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1
        policy.actor.linear.bias += torch.tensor([3.0, 0.0, -1.0])
    batch = clear.transform_batch(ctx, random_chunk(policy, T, B))
    outputs = policy.sequence(batch, batch.state)
    got = clear.extra_loss(ctx, batch, outputs, B)
    mu = torch.distributions.Categorical(logits=batch.policy[:-1, B:])  # the burn-in stands behind
    pi = torch.distributions.Categorical(logits=outputs.policy[:-1, B:])
    kl = torch.distributions.kl_divergence(mu, pi).mean()
    value = (outputs.value[:-1, B:] - batch.value[:-1, B:]).square().mean()
    share = 3 / 7  # of the steps that count: three of a replayed copy, four of a live one
    torch.testing.assert_close(got, share * (0.3 * kl + 0.2 * value))
    other_way = torch.distributions.kl_divergence(pi, mu).mean()
    assert abs(float((kl - other_way).detach())) > 1e-2  # so that the direction is seen


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("burn_in", [0, 2])
def test_the_cloning_weights_are_those_of_the_paper_at_any_ratio(ratio: float, burn_in: int) -> None:
    """The paper adds up the losses of all steps and the cloning terms of the replayed ones; dividing both by the number
    of all steps leaves their proportion."""
    clear, policy, ctx = filled(ratio=ratio, burn_in=burn_in, policy_cloning=0.3, value_cloning=0.2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1
    batch = clear.transform_batch(ctx, random_chunk(policy, T, B))
    outputs = policy.sequence(batch, batch.state)
    got = clear.extra_loss(ctx, batch, outputs, B)
    log_mu, log_pi = (torch.log_softmax(x[: T - burn_in, B:], -1) for x in (batch.policy, outputs.policy))
    kl = (log_mu.exp() * (log_mu - log_pi)).sum()
    value = (outputs.value - batch.value)[: T - burn_in, B:].square().sum()
    steps = T * B + (T - burn_in) * round(ratio * B)
    torch.testing.assert_close(got, (0.3 * kl + 0.2 * value) / steps)


def test_burn_in_steps_of_replayed_sequences_have_no_weight_and_the_buffer_keeps_its_own() -> None:
    clear, policy, ctx = filled(burn_in=2)
    batch = clear.transform_batch(ctx, random_chunk(policy, T, B))
    assert not batch.weight[-2:, B:].any() and bool((batch.weight[:-2, B:] == 1).all())
    assert bool((batch.weight[:, :B] == 1).all())
    assert clear.replay.storage is not None
    assert bool((clear.replay.storage.weight[:, : clear.replay.size] == 1).all())


def test_replayed_copies_have_no_carry_and_live_ones_keep_theirs() -> None:
    clear, policy, ctx = filled()
    engine = RTRL(policy.cell, B)  # type: ignore[arg-type]
    engine.load_state_dict({name: torch.randn_like(carry) for name, carry in engine.state_dict().items()})
    seen = []
    boundary = engine.boundary

    def remember(grad: torch.Tensor, index: torch.Tensor | None) -> Any:
        seen.append(grad)
        return boundary(grad, index)

    engine.boundary = remember  # type: ignore[method-assign]
    learner = Learner(
        policy, engine, ctx.objective, torch.optim.SGD(policy.parameters(), 0.0), [clear], 0.0, torch.Generator()
    )
    data = random_chunk(policy, T, B)
    data.is_init[:] = False
    live, _ = act_through(policy, data)
    learner.update(ctx, live)
    assert [grad.shape for grad in seen] == [(B, policy.cell.state_size)]
    assert bool(seen[0].any())


def test_the_age_of_what_is_replayed_is_reported() -> None:
    clear, policy, ctx = filled()
    later = make_context(policy, ctx.objective, B, T, step=350)
    clear.transform_batch(later, random_chunk(policy, T, B))
    assert clear.report()["replay_age"] == 250.0 and clear.report()["replay_size"] == 18.0


def test_a_burn_in_that_leaves_no_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clear: burn_in is 4; it must be below rollout.steps \(4\)"):
        make_trainer(tmp_path, strategy=[{"kind": "clear", "burn_in": 4}])


def test_it_needs_no_boundaries_but_ewc_and_gpm_do(tmp_path: Path) -> None:
    hidden = {"stream": {"boundaries": "hidden", "task_id": "hidden"}}
    run(make_trainer(tmp_path, strategy=[{"kind": "clear", "start": 8}], **hidden), until=64)
    for kind in ("ewc", "gpm"):
        with pytest.raises(ConfigError, match=f"strategy {kind} needs task boundaries"):
            make_trainer(tmp_path, strategy=[{"kind": kind}], **hidden)
        make_trainer(tmp_path, strategy=[{"kind": kind, "every": 64}], **hidden)
