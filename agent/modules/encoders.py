"""Encoders: observation -> features, row by row (no memory). Shapes: M rows, features F."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


def make_activation(name: str) -> nn.Module:
    """The activation module `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; valid: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Encoder(nn.Module):
    """Base of all encoders: `forward(obs [M, ...]) -> features [M, F]`, with `output_size` F.

    Args:
        space: observation space of one copy, a Box.
    """

    output_size: int
    #: the features of a vector observation are the observation itself
    transparent: bool = False

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__()
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"encoders read a Box observation, not {type(space).__name__}")
        self.space = space
        self.uint8 = space.dtype.kind == "u"

    def prepare(self, obs: Tensor) -> Tensor:
        """Observations as floats; bytes are scaled to [0, 1]."""
        return obs.float() / 255.0 if self.uint8 else obs


class Identity(Encoder):
    """Passes the flattened observation on; the cell reads it directly, so with rtrl no gradient is truncated."""

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__(space)
        self.output_size = math.prod(space.shape)
        self.transparent = len(space.shape) == 1 and not self.uint8

    def forward(self, obs: Tensor) -> Tensor:
        return self.prepare(obs).flatten(1)


class MLP(Encoder):
    """Fully connected layers with an activation after each.

    Args:
        space: observation space of one copy.
        hidden: width of each layer.
        activation: tanh, relu or silu.
    """

    def __init__(self, space: gymnasium.spaces.Box, *, hidden: Any = (64,), activation: str = "tanh") -> None:
        super().__init__(space)
        widths = [math.prod(space.shape), *(int(width) for width in hidden)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            linear = nn.Linear(width_in, width_out)
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, make_activation(activation)]
        self.layers = nn.Sequential(*layers)
        self.output_size = widths[-1]

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.layers(self.prepare(obs).flatten(1))
        return features


class CNN(Encoder):
    """A small convolutional net for images [C, H, W] or [H, W, C] (the last axis is the channels if it is at most 4).

    Args:
        space: observation space of one copy.
        channels: output channels of each 3x3 convolution; every one but the first halves the image (stride 2).
        hidden: width of the final linear layer.
        activation: tanh, relu or silu.
    """

    def __init__(
        self,
        space: gymnasium.spaces.Box,
        *,
        channels: Any = (16, 32),
        hidden: int = 64,
        activation: str = "relu",
    ) -> None:
        super().__init__(space)
        if len(space.shape) != 3:
            raise ValueError(f"cnn reads images with 3 axes, not shape {space.shape}; use the mlp encoder")
        self.channels_last = space.shape[-1] <= 4 and space.shape[0] > 4
        channels_in = space.shape[-1] if self.channels_last else space.shape[0]
        layers: list[nn.Module] = []
        for index, width in enumerate(channels):
            layers += [nn.Conv2d(channels_in, int(width), 3, stride=1 if index == 0 else 2, padding=1)]
            layers += [make_activation(activation)]
            channels_in = int(width)
        self.convolutions = nn.Sequential(*layers)
        with torch.no_grad():
            flat = self.convolutions(self._image(torch.zeros(1, *space.shape))).numel()
        self.linear = nn.Sequential(nn.Linear(flat, hidden), make_activation(activation))
        self.output_size = hidden

    def _image(self, obs: Tensor) -> Tensor:
        image = self.prepare(obs)
        return image.permute(0, 3, 1, 2) if self.channels_last else image

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.linear(self.convolutions(self._image(obs)).flatten(1))
        return features
