"""UER: the gradient of live steps turns directions, that of replayed ones is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lifelong.agent.errors import ConfigError
from lifelong.agent.strategies.uer import UER
from tests.agent.support import filled, make_trainer, perturb, random_chunk, run

B, T = 6, 4


def across(gradient: Tensor, direction: Tensor) -> Tensor:
    """Rows of `gradient` without what lies along the rows of `direction`."""
    unit = direction / direction.norm(dim=-1, keepdim=True)
    return gradient - (gradient * unit).sum(-1, keepdim=True) * unit


@pytest.mark.parametrize("replayed", [False, True])
def test_the_gradient_of_live_steps_is_that_of_the_angles_and_of_replayed_ones_that_of_the_logits(
    replayed: bool,
) -> None:
    """d/dw of |w|_const |f|_const cos(w, f) is the plain gradient without its part along w (and along f for f)."""
    strategy = UER(capacity=50, start=1 if replayed else 50)
    policy, ctx = filled(strategy, B, T)
    perturb(policy)
    live = random_chunk(policy, T, B)
    batch = strategy.transform_batch(ctx, live)
    assert batch.copies == (2 * B if replayed else B)
    outputs = policy.sequence(batch, batch.state)
    linear, features = policy.actor.linear, outputs.features
    assert features is not None

    def gradients(loss: Tensor) -> list[Tensor]:
        wanted = [linear.weight, linear.bias, features, policy.critic.weight]
        return list(torch.autograd.grad(loss, wanted, retain_graph=True))

    loss, _ = ctx.objective.loss(outputs, batch, {})
    extra = strategy.extra_loss(ctx, batch, outputs, B)
    assert extra is not None and float(extra.detach()) == pytest.approx(0.0, abs=1e-6)
    got = gradients(loss + extra)
    plain = gradients(loss)
    # the part of the actor's loss, live and replayed, by hand
    z = outputs.policy
    (dz,) = torch.autograd.grad(loss, z, retain_graph=True)
    ours, theirs = dz[:, :B].flatten(0, 1), dz[:, B:].flatten(0, 1)
    f_live, f_old = features.detach()[:, :B].flatten(0, 1), features.detach()[:, B:].flatten(0, 1)
    weight = across(ours.T @ f_live, linear.weight.detach()) + theirs.T @ f_old
    torch.testing.assert_close(got[0], weight, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(got[1], theirs.sum(0), atol=1e-6, rtol=1e-4)
    of_actor = dz[:, :B] @ linear.weight.detach()
    turned = plain[2].clone()
    turned[:, :B] += across(of_actor, features.detach()[:, :B]) - of_actor
    torch.testing.assert_close(got[2], turned, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(got[3], plain[3])
    assert float((weight - plain[0]).detach().norm()) > 1e-3


def test_values_of_actions_and_continuous_actions_have_no_logits(tmp_path: Path) -> None:
    for changes in (
        {"objective": {"kind": "q_learning"}},
        {"stream": {"tasks": [{"name": "one", "env": {"kind": "Pendulum"}}]}},
    ):
        with pytest.raises(ConfigError, match="uer takes the logits of discrete actions apart"):
            make_trainer(tmp_path, strategy=[{"kind": "uer"}], **changes)


def test_it_learns_from_prediction_tasks_too(tmp_path: Path) -> None:
    stream = {"tasks": [{"name": "rows", "env": {"kind": "ImageRows", "rows_per_step": 7}}]}
    spec = [{"kind": "uer", "capacity": 24, "start": 8}]
    seen = run(make_trainer(tmp_path, stream=stream, objective={"kind": "supervised"}, strategy=spec)).seen
    assert seen["strategy/uer/length_ratio"] >= 1.0
