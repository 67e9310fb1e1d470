"""Encoders of images against their published sizes and a second implementation of their equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box

from lifelong.agent.modules.images import ImpalaCNN, NatureCNN

PIXELS = Box(0, 255, (4, 84, 84), np.uint8)


def test_nature_cnn_is_the_network_of_the_paper() -> None:
    net = NatureCNN(PIXELS, layout="chw")
    image = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    layers = [(p, q) for p, q in zip(*[iter(net.parameters())] * 2, strict=True)]
    x = image / 255
    for (weight, bias), stride in zip(layers[:3], (4, 2, 1), strict=True):
        x = F.relu(F.conv2d(x, weight, bias, stride=stride))
    assert x.shape == (3, 64, 7, 7)
    torch.testing.assert_close(net(image), F.relu(F.linear(x.flatten(1), *layers[3])))
    assert sum(p.numel() for p in net.parameters()) == 8_224 + 32_832 + 36_928 + 1_606_144
    assert [len(layer.name) > 0 for layer in net.unit_layers()] == [True] * 4
    weight = layers[0][0].flatten(1)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(32), atol=1e-5, rtol=0)


def test_impala_cnn_is_the_network_of_the_paper() -> None:
    net = ImpalaCNN(PIXELS, layout="chw")
    assert sum(p.numel() for p in net.parameters()) == 97_744 + 3_872 * 256 + 256
    image = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    pairs = list(zip(*[iter(net.parameters())] * 2, strict=True))
    x = image / 255
    for stage in range(3):
        (w, b), *blocks = pairs[5 * stage : 5 * stage + 5]
        x = F.max_pool2d(F.conv2d(x, w, b, padding=1), 3, stride=2, padding=1)
        for first, second in (blocks[:2], blocks[2:]):
            x = x + F.conv2d(F.relu(F.conv2d(F.relu(x), *first, padding=1)), *second, padding=1)
    assert x.shape == (2, 32, 11, 11)
    torch.testing.assert_close(net(image), F.relu(F.linear(F.relu(x).flatten(1), *pairs[15])))


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 36 x 36"):
        NatureCNN(Box(0, 255, (3, 35, 80), np.uint8))
    assert NatureCNN(Box(0, 255, (3, 36, 36), np.uint8))(torch.zeros(1, 3, 36, 36)).shape == (1, 512)
    with pytest.raises(ValueError, match="not shape"):
        ImpalaCNN(Box(0, 1, (7,), np.float32))
