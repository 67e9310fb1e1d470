"""The supervised objective against torch's own losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiDiscrete

from lifelong.agent.modules.heads import distribution_of
from lifelong.agent.objectives.supervised import Supervised
from lifelong.agent.policy import Outputs
from tests.agent.support import make_policy, make_rollout, random_chunk, task_env


def test_discrete_targets_give_the_cross_entropy_of_the_steps_that_have_one() -> None:
    policy = make_policy().double()
    chunk = random_chunk(policy, 7, 5, dtype=torch.float64)
    chunk.target = torch.randint(3, (7, 5))
    chunk.target_mask = torch.rand(7, 5) < 0.4
    chunk.weight[:, 4] = 0.0
    outputs = policy.sequence(chunk, chunk.state)
    loss, metrics = Supervised(policy.distribution).loss(outputs, chunk, {})
    counts = chunk.target_mask & (chunk.weight > 0)
    expected = torch.nn.functional.cross_entropy(outputs.policy[counts], chunk.target[counts])
    torch.testing.assert_close(loss, expected)
    hits = outputs.policy.argmax(-1)[counts] == chunk.target[counts]
    torch.testing.assert_close(metrics["accuracy"], hits.double().mean())


def test_box_targets_give_half_the_squared_error_of_the_mean() -> None:
    distribution = distribution_of(Box(-5, 5, (2,), np.float32))
    chunk = random_chunk(make_policy(), 7, 5)
    chunk.target, chunk.target_mask = torch.randn(7, 5, 2), torch.rand(7, 5) < 0.4
    params = torch.randn(7, 5, 4)
    loss, _ = Supervised(distribution).loss(Outputs(params, torch.zeros(7, 5)), chunk, {})
    error = torch.nn.functional.mse_loss(params[..., :2], chunk.target, reduction="none").sum(-1)
    torch.testing.assert_close(loss, 0.5 * error[chunk.target_mask].mean())


def test_real_images_give_a_target_at_the_last_row_which_is_learned_from() -> None:
    env = task_env({"kind": "ImageRows"}, copies=16)
    policy = make_policy("elstm", 8, env.single_observation_space, env.single_action_space)
    chunk = make_rollout(env, policy).collect(28).chunk
    assert int(chunk.target_mask.sum()) >= 16
    outputs = policy.sequence(chunk, chunk.state)
    loss, _ = Supervised(policy.distribution).loss(outputs, chunk, {})
    mask = chunk.target_mask
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(outputs.policy[mask], chunk.target[mask]))


@pytest.mark.parametrize("counts", [[2, 2, 2], [2, 3, 4]])
def test_multi_discrete_targets_give_the_sum_of_the_cross_entropies_of_their_parts(counts: list[int]) -> None:
    distribution = distribution_of(MultiDiscrete(counts))
    chunk = random_chunk(make_policy(), 7, 5)
    chunk.target = torch.stack([torch.randint(n, (7, 5)) for n in counts], -1)
    chunk.target_mask = torch.rand(7, 5) < 0.4
    params = torch.randn(7, 5, sum(counts))
    loss, metrics = Supervised(distribution).loss(Outputs(params, torch.zeros(7, 5)), chunk, {})
    where, rows = chunk.target_mask, params.split(counts, -1)
    parts = [torch.nn.functional.cross_entropy(p[where], chunk.target[where][:, i]) for i, p in enumerate(rows)]
    torch.testing.assert_close(loss, torch.stack(parts).sum())
    hits = torch.stack([p.argmax(-1) == chunk.target[..., i] for i, p in enumerate(rows)], -1)
    torch.testing.assert_close(metrics["accuracy"], hits[where].float().mean())


def test_a_space_that_has_no_supervised_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set policy\.squash to none"):
        Supervised(distribution_of(Box(-1, 1, (2,), np.float32), "tanh"))
