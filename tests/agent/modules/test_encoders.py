"""Encoders that read categories, against an explicit one-hot encoding and torch's own linear layer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import nn

from lifelong.agent.config import PolicyConfig
from lifelong.agent.modules.encoders import CNN, MLP, Identity, OneHotLinear
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.gpm import Taps
from tests.agent.support import act_through, random_chunk

COUNTS = [3, 1, 5]
SPACE = MultiDiscrete(np.array(COUNTS), dtype=np.uint8)


def one_hot(ids: torch.Tensor) -> torch.Tensor:
    rows = torch.zeros(len(ids), sum(COUNTS))
    for row, values in zip(rows, ids.tolist(), strict=True):
        for first, value in zip((0, 3, 4), values, strict=True):
            row[first + value] = 1.0
    return rows


def draw(rows: int) -> torch.Tensor:
    return torch.stack([torch.randint(count, (rows,)) for count in COUNTS], -1).to(torch.uint8)


def test_a_layer_on_categories_is_a_linear_layer_on_their_one_hot_encoding() -> None:
    layer, ids, pull = OneHotLinear(COUNTS, 7), draw(20), torch.randn(20, 7)
    plain = nn.Linear(sum(COUNTS), 7)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(ids), plain(one_hot(ids)))
    with torch.no_grad():
        torch.testing.assert_close(layer(ids), plain(one_hot(ids)))
    (layer(ids) * pull).sum().backward()
    (plain(one_hot(ids)) * pull).sum().backward()
    for got, expected in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
    assert torch.equal(layer.one_hot(ids), one_hot(ids))


@pytest.mark.parametrize("fused", [False, True])
def test_optimisers_treat_its_weight_like_any_other(fused: bool) -> None:
    """Acting in between must not keep what the weight was."""
    layer, ids = OneHotLinear(COUNTS, 7), draw(20)
    plain = nn.Linear(sum(COUNTS), 7)
    plain.load_state_dict(copy.deepcopy(layer.state_dict()))
    adams = [torch.optim.Adam(each.parameters(), lr=0.1, fused=fused) for each in (layer, plain)]
    for _ in range(3):
        for each, adam, x in ((layer, adams[0], ids), (plain, adams[1], one_hot(ids))):
            adam.zero_grad()
            each(x).square().sum().backward()
            nn.utils.clip_grad_norm_(each.parameters(), 1.0)
            adam.step()
            torch.autograd.graph.increment_version(list(each.parameters()))  # as the learner does
        with torch.no_grad():
            torch.testing.assert_close(layer(ids), plain(one_hot(ids)), rtol=1e-4, atol=1e-5)
    for got, expected in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_mlp_and_identity_read_categories_one_hot() -> None:
    ids = draw(6)
    assert torch.equal(Identity(SPACE)(ids), one_hot(ids))
    mlp = MLP(SPACE, hidden=[8, 4])
    first, _, second, _ = mlp.layers
    hidden = torch.tanh(nn.functional.linear(one_hot(ids), first.weight, first.bias))
    torch.testing.assert_close(mlp(ids), torch.tanh(second(hidden)))
    assert torch.equal(MLP(SPACE, hidden=[])(ids), one_hot(ids))


def test_gpm_protects_what_the_layer_reads_by_its_meaning() -> None:
    config = PolicyConfig(encoder={"kind": "mlp", "hidden": [8]}, cell={"kind": "elstm", "size": 4})
    policy = Policy(config, SPACE, Discrete(2))
    chunk = random_chunk(policy, 3, 5)
    chunk.obs = draw(15).view(3, 5, 3)
    taps = Taps(policy)
    assert taps.weights["encoder.layers.0"] == (["encoder.layers.0.weight"], "encoder.layers.0.bias")
    read = taps.vectors(act_through(policy, chunk)[0])["encoder.layers.0"]
    assert torch.equal(read, torch.cat([one_hot(chunk.obs.flatten(0, 1)), torch.ones(15, 1)], 1))


@pytest.mark.parametrize("space", [Discrete(3), MultiDiscrete(np.array([[2, 3], [4, 5]]))])
def test_other_spaces_are_one_sentence(space: Discrete) -> None:
    with pytest.raises(ValueError, match="encoders read a Box or a MultiDiscrete with one axis"):
        MLP(space)
    with pytest.raises(ValueError, match="cnn reads images"):
        CNN(SPACE)
