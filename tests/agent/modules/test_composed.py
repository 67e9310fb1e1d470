"""The actor that composes policies, against its equations with the attention of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor, nn

from lifelong.agent.modules.composed import ComposedHead, encoded_positions
from lifelong.agent.modules.heads import distribution_of
from lifelong.agent.modules.values import EpsilonGreedy

H, D = 7, ComposedHead.HIDDEN
TASK = torch.zeros(5, dtype=torch.int64)


def head_of(space: object = None, modules: int = 3) -> ComposedHead:
    torch.manual_seed(0)
    head = ComposedHead(H, distribution_of(space or Discrete(4)), modules)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name != "current":
                parameter.normal_(std=0.5)
    return head


def point_at(head: ComposedHead, module: int) -> None:
    with torch.no_grad():
        head.current.copy_(torch.eye(head.modules_count)[module])


def attend(query_BD: Tensor, keys_BnD: Tensor, values: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(query_BD.unsqueeze(1), keys_BnD, values).squeeze(1)


def test_every_module_says_what_the_paper_s_equations_say_with_values_and_first_layer_apart() -> None:
    """Values W_v of the input attention and W_1 of the internal policy; the head has their product."""
    head, h_BH = head_of(), torch.randn(5, H, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    values, first = torch.randn(3, D, 4, generator=generator), torch.randn(3, D, D, generator=generator) / D
    with torch.no_grad():
        head.value_in.copy_((first @ values).flatten(0, 1))
    weight, bias = head.linear.weight.view(3, 3, D, H), head.linear.bias.view(3, 3, D)
    positions, phi = encoded_positions(3, 4), torch.zeros(5, 0, 4)
    for k in range(3):
        q, r, hidden = (h_BH @ weight[k, i].T + bias[k, i] for i in range(3))
        composed = torch.zeros(5, 4)
        if k:
            keys = (phi + positions[:k]) @ head.key_out.view(3, D, 4)[k].T
            composed = attend(q, keys, phi)
            both = torch.cat([phi, composed.unsqueeze(1)], 1)
            keys = (both + positions[: k + 1]) @ head.key_in.view(3, D, 4)[k].T
            read = attend(r, keys, both @ values[k].T)
            hidden = hidden + read @ first[k].T
        inside = hidden.relu() @ head.weight.view(3, 4, D)[k].T + head.bias.view(3, 4)[k]
        point_at(head, k)
        torch.testing.assert_close(head(h_BH, TASK), composed + inside)
        phi = torch.cat([phi, (composed + inside).softmax(-1).unsqueeze(1)], 1)


def test_a_module_without_a_will_of_its_own_mixes_the_policies_before_it() -> None:
    head, h_BH = head_of(), torch.randn(5, H)
    with torch.no_grad():
        head.block(head.weight, 2).zero_()
        head.block(head.bias, 2).zero_()
    said = []
    for k in range(3):
        point_at(head, k)
        said.append(head(h_BH, TASK))
    mixed, one, other = said[2], said[0].softmax(-1), said[1].softmax(-1)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(5))
    share = ((mixed - other) / (one - other)).detach()
    torch.testing.assert_close(share, share[:, :1].expand_as(share), rtol=1e-3, atol=1e-4)
    assert bool(((share > 0) & (share < 1)).all())


def test_a_new_module_begins_near_the_mixture_and_so_explores() -> None:
    torch.manual_seed(0)
    head = ComposedHead(H, distribution_of(Discrete(4)), 2)
    with torch.no_grad():
        head.block(head.bias, 0).copy_(torch.tensor([9.0, 0, 0, 0]))  # the first is sure of itself
    said = []
    for k in range(2):
        point_at(head, k)
        said.append(head(torch.randn(5, H), TASK).softmax(-1))
    assert bool((said[0][:, 0] > 0.99).all()) and bool((said[1][:, 0] < 0.6).all())


def test_of_several_parts_of_an_action_each_is_a_policy_and_of_continuous_ones_the_mean() -> None:
    parts = head_of(MultiDiscrete([2, 3]))
    said = torch.randn(5, 5)
    policy = parts.policy_of(said)
    torch.testing.assert_close(policy, torch.cat([said[:, :2].softmax(-1), said[:, 2:].softmax(-1)], -1))
    mean = head_of(Box(-1, 1, (2,), np.float32))
    assert torch.equal(mean.policy_of(said[:, :2]), said[:, :2])
    point_at(mean, 1)
    params = mean(torch.randn(5, H), TASK)
    assert params.shape == (5, 4) and torch.equal(params[0, 2:], mean.log_std[1])


def test_values_of_actions_are_no_probabilities() -> None:
    head = ComposedHead(H, EpsilonGreedy(3), 2)
    said = torch.randn(5, 3)
    assert torch.equal(head.policy_of(said), said)


@pytest.mark.parametrize("module", [0, 1, 2])
def test_modules_after_the_one_that_acts_have_no_part_in_it(module: int) -> None:
    head, h_BH = head_of(), torch.randn(5, H)
    point_at(head, module)
    head(h_BH, TASK).square().sum().backward()
    for name, parameter in head.named_parameters():
        if name != "current" and parameter.grad is not None:
            rows = parameter.grad.view(3, -1).abs().sum(1) > 0
            assert not bool(rows[module + 1 :].any()), name
            attends = module > 0 if name in ("key_in", "value_in") else module > 1 or name != "key_out"
            assert bool(rows[module]) == attends, name  # to one policy alone there is no choice


def test_positions_are_sines_and_cosines() -> None:
    found = encoded_positions(3, 5)
    assert found[0].tolist() == [0, 1, 0, 1, 0]
    angles = torch.tensor([2.0, 2 / 10_000**0.4])
    torch.testing.assert_close(found[2, [0, 2]], angles.sin())
    torch.testing.assert_close(found[2, [1, 3]], angles.cos())
