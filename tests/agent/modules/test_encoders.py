"""Encoders that read categories, against an explicit one-hot encoding and torch's own linear layer."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import nn

from lifelong.agent.config import PolicyConfig
from lifelong.agent.modules.encoders import MLP, DepthRecurrent, Identity, OneHotLinear, Rational
from lifelong.agent.modules.images import CNN, layout_of
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.taps import Taps
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


# ---- bytes and images ------------------------------------------------------------------------------------------------


def test_bytes_are_divided_by_the_largest_of_their_space() -> None:
    for largest in (255, 10):
        encoder = Identity(Box(0, largest, (3,), np.uint8))
        obs = torch.tensor([[0, 5, largest]], dtype=torch.uint8)
        torch.testing.assert_close(encoder(obs), torch.tensor([[0.0, 5 / largest, 1.0]]))
        assert not encoder.transparent


IMAGES = {
    "hw": (5, 6),
    "chw": (3, 5, 6),
    "hwc": (5, 6, 3),
    "nchw": (2, 3, 5, 6),
    "nhwc": (2, 5, 6, 3),
}


@pytest.mark.parametrize("layout", IMAGES)
def test_every_layout_shows_the_same_image_to_the_convolutions(layout: str) -> None:
    """Against indexing pixel by pixel: frame n, channel c, row h, column w."""
    shape = IMAGES[layout]
    image = torch.rand(2, *shape)
    got = CNN(Box(0, 1, shape, np.float32), layout=layout).image(image)
    size = dict(zip(layout, shape, strict=True))
    frames, channels = size.get("n", 1), size.get("c", 1)
    assert got.shape == (2, frames * channels, 5, 6)
    for n, c, h, w in product(range(frames), range(channels), range(5), range(6)):
        place = {"n": n, "c": c, "h": h, "w": w}
        index = tuple(place[axis] for axis in layout)
        assert torch.equal(got[:, n * channels + c, h, w], image[(slice(None), *index)])


def test_a_layout_is_found_only_where_the_shape_leaves_no_choice() -> None:
    assert layout_of((84, 84), "auto") == "hw"
    assert layout_of((4, 84, 84), "auto") == "chw" and layout_of((84, 84, 1), "auto") == "hwc"
    for shape in ((12, 64, 64), (64, 64, 12), (3, 64, 3)):
        with pytest.raises(ValueError, match=r"cannot tell which axis .* set layout to chw or hwc"):
            layout_of(shape, "auto")
    with pytest.raises(ValueError, match="set layout to nchw or nhwc"):
        layout_of((4, 84, 84, 3), "auto")
    with pytest.raises(ValueError, match="layout hwc has 3 axes, but images have shape"):
        layout_of((4, 84, 84, 3), "hwc")
    with pytest.raises(ValueError, match="layout is 'whc'; valid: auto, hw"):
        layout_of((4, 84, 84), "whc")
    with pytest.raises(ValueError, match="2 to 4 axes, not shape \\(7,\\); use the mlp"):
        layout_of((7,), "auto")
    with pytest.raises(ValueError, match="not categories"):
        CNN(SPACE)


def test_stacked_bytes_of_any_layout_are_read() -> None:
    encoder = CNN(Box(0, 255, (4, 12, 12, 3), np.uint8), layout="nhwc", hidden=5)
    features = encoder(torch.randint(256, (7, 4, 12, 12, 3), dtype=torch.uint8))
    assert features.shape == (7, 5)


# ---- norm and concatenated ReLU --------------------------------------------------------------------------------------


def test_layer_norm_and_crelu_are_what_their_papers_write() -> None:
    torch.manual_seed(0)
    encoder, obs = MLP(Box(-9, 9, (5,)), hidden=[4, 3], activation="crelu", norm="layer"), torch.randn(7, 5)
    assert encoder.output_size == 6
    state = {name: torch.randn_like(x) for name, x in encoder.state_dict().items()}
    encoder.load_state_dict(state)
    x = obs
    for index in (0, 3):
        x = x @ state[f"layers.{index}.weight"].T + state[f"layers.{index}.bias"]
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt() * state[f"layers.{index + 1}.weight"] + state[
            f"layers.{index + 1}.bias"
        ]
        x = torch.cat([x.clamp(min=0), (-x).clamp(min=0)], 1)
    torch.testing.assert_close(encoder(obs), x)


def test_weights_with_a_length_of_their_own_are_those_of_torch() -> None:
    torch.manual_seed(0)
    encoder, obs = MLP(Box(-9, 9, (5,)), hidden=[4, 3], norm="weight"), torch.randn(7, 5)
    linears = []
    for layer in (encoder.layers[0], encoder.layers[2]):
        linear = torch.nn.utils.parametrizations.weight_norm(nn.Linear(layer.direction.shape[1], len(layer.direction)))
        with torch.no_grad():
            layer.gain.mul_(1.5)
            layer.bias.uniform_(-1, 1)
            linear.parametrizations.weight.original0.copy_(layer.gain.unsqueeze(1))
            linear.parametrizations.weight.original1.copy_(layer.direction)
            linear.bias.copy_(layer.bias)
        linears.append(linear)
    theirs = nn.Sequential(linears[0], nn.Tanh(), linears[1], nn.Tanh())
    torch.testing.assert_close(encoder(obs), theirs(obs))
    encoder(obs).square().sum().backward()
    theirs(obs).square().sum().backward()
    for index, linear in zip((0, 2), linears, strict=True):
        layer, made = encoder.layers[index], linear.parametrizations.weight
        torch.testing.assert_close(layer.direction.grad, made.original1.grad)
        torch.testing.assert_close(layer.gain.grad, made.original0.grad.squeeze(1))
        assert float((layer.direction.detach() * layer.direction.grad).sum(1).abs().max()) < 1e-6  # it only grows


def test_with_norm_weight_it_begins_as_the_same_function_and_reads_categories() -> None:
    for space, obs in ((Box(-9, 9, (5,)), torch.randn(7, 5)), (SPACE, draw(7))):
        torch.manual_seed(3)
        plain = MLP(space, hidden=[4])
        torch.manual_seed(3)
        normed = MLP(space, hidden=[4], norm="weight")
        with torch.no_grad():
            normed.layers[0].direction.copy_(plain.layers[0].weight)
            normed.layers[0].gain.copy_(plain.layers[0].weight.norm(dim=1))
        torch.testing.assert_close(normed(obs), plain(obs))


def test_a_normalised_convolution_has_mean_zero_over_channels_and_pixels_and_crelu_doubles_the_channels() -> None:
    space, obs = Box(0, 1, (6, 6)), torch.rand(5, 6, 6)
    encoder = CNN(space, channels=[3, 4], hidden=8, activation="crelu", norm="layer")
    seen: list[torch.Tensor] = []
    for module in encoder.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    assert encoder(obs).shape == (5, 16) == (5, encoder.output_size)
    assert [x.shape[1] for x in seen] == [3, 4, 8]
    for x in seen:
        torch.testing.assert_close(x.flatten(1).mean(1), torch.zeros(5), rtol=0, atol=1e-5)
        torch.testing.assert_close(x.flatten(1).square().mean(1), torch.ones(5), rtol=0.05, atol=0)
    wide = [m.in_channels for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert wide == [1, 6]


@pytest.mark.parametrize("activation", ["tanh", "crelu"])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_projections_see_the_inputs_of_its_linear_layers(activation: str, norm: str) -> None:
    encoder = {"kind": "mlp", "hidden": [4, 3], "activation": activation, "norm": norm}
    policy = Policy(PolicyConfig(encoder=encoder, cell={"kind": "gru", "size": 6}), Box(-9, 9, (5,)), Discrete(3))
    taps = Taps(policy)
    second = "encoder.layers.3" if norm == "layer" else "encoder.layers.2"
    assert set(taps.weights) >= {"encoder.layers.0", second}
    experience, _ = act_through(policy, random_chunk(policy, 3, 4))
    vectors, width = taps.vectors(experience)[second], 8 if activation == "crelu" else 4
    weight = policy.get_parameter(f"{second}.weight")
    assert vectors.shape == (12, width + 1) and weight.shape[1] == width
    with torch.no_grad():
        features = policy.encoder(experience.chunk.obs.flatten(0, 1))
        x = vectors[:, :-1] @ weight.T + policy.get_parameter(f"{second}.bias")
        rest = list(policy.encoder.layers)[4 if norm == "layer" else 3 :]  # type: ignore[arg-type, union-attr]
        torch.testing.assert_close(nn.Sequential(*rest)(x), features)


def test_a_rational_activation_begins_near_the_leaky_relu_and_is_its_fraction() -> None:
    rational = Rational().double()
    x = torch.linspace(-3, 3, 601, dtype=torch.float64, requires_grad=True)
    assert float((rational(x) - nn.functional.leaky_relu(x, 0.01)).abs().max()) < 0.031
    with torch.no_grad():
        rational.numerator.add_(torch.linspace(-0.5, 0.5, 6))
        rational.denominator.add_(torch.linspace(0.4, -0.4, 4))
    a, b = rational.numerator.detach().numpy(), rational.denominator.detach().numpy()
    points = x.detach().numpy()
    below = 1 + sum(np.abs(b[k - 1] * points**k) for k in range(1, 5))
    np.testing.assert_allclose(rational(x).detach().numpy(), np.polyval(a[::-1], points) / below, rtol=1e-10)
    assert torch.autograd.gradcheck(rational, x[25::50])  # |b x| has a kink at 0


def test_the_block_of_a_depth_recurrent_encoder_is_applied_so_often() -> None:
    torch.manual_seed(0)
    net = DepthRecurrent(Box(-1, 1, (5,), np.float32), hidden=8, depth=3)
    x = torch.randn(4, 5)
    e, h = x @ net.embed.weight.T + net.embed.bias, torch.zeros(4, 8)
    for _ in range(3):
        inner = torch.cat([h, e], 1) @ net.inner.weight.T + net.inner.bias
        z = h + (inner * torch.sigmoid(inner)) @ net.outer.weight.T + net.outer.bias
        h = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(net(x), h, rtol=1e-4, atol=1e-5)
    deeper = DepthRecurrent(Box(-1, 1, (5,), np.float32), hidden=8, depth=9)
    deeper.load_state_dict(net.state_dict())  # another depth takes the same parameters
    assert not torch.allclose(deeper(x), net(x))


@pytest.mark.parametrize(("inputs", "share", "zeros"), [(20, 0.9, 18), (7, 0.5, 4), (3, 0.99, 2)])
def test_a_sparse_layer_has_as_many_zeros_in_every_row_and_the_rest_within_bounds(
    inputs: int, share: float, zeros: int
) -> None:
    torch.manual_seed(0)
    encoder = MLP(Box(-1, 1, (inputs,), np.float32), hidden=[50], sparse=share)
    weight = encoder.layers[0].weight
    assert ((weight == 0).sum(1) == zeros).all()
    assert float(weight.abs().max()) <= inputs**-0.5
    assert len({tuple(row.nonzero().flatten().tolist()) for row in weight}) > min(2, inputs - zeros)
