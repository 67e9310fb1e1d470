"""Encoders: observation -> features, row by row (no memory). Shapes: M rows, features F."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor, nn

from lifelong.envs.options import Width, Widths

Observations = gymnasium.spaces.Box | gymnasium.spaces.MultiDiscrete

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


def make_activation(name: str) -> nn.Module:
    """The activation module `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; valid: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class _SumOfColumns(torch.autograd.Function):
    """x W^T + b for rows x with ones in `columns` [M, K] and zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, columns_MK: Tensor, weight_HV: Tensor, bias_H: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(columns_MK)
        ctx.categories = weight_HV.shape[1]
        return nn.functional.embedding_bag(columns_MK, weight_HV.t().contiguous(), mode="sum") + bias_H

    @staticmethod
    def backward(ctx: Any, d_MH: Tensor) -> tuple[None, Tensor, Tensor]:  # type: ignore[override]
        (columns_MK,) = ctx.saved_tensors
        one_hot_MV = d_MH.new_zeros(len(columns_MK), ctx.categories).scatter_(1, columns_MK, 1.0)
        return None, d_MH.t() @ one_hot_MV, d_MH.sum(0)


class OneHotLinear(nn.Linear):
    """A linear layer that reads K categories one-hot, by adding up K columns of its weight.

    Args:
        counts: number of categories of each of the K inputs; V is their sum.
        output_size: H; the weight is [H, V].
    """

    #: a cache of values computed from parameters (see `agent.runtime.capture`)
    TRANSIENT: ClassVar[tuple[str, ...]] = ("_kept",)
    first: Tensor

    def __init__(self, counts: Sequence[int], output_size: int) -> None:
        super().__init__(sum(counts), output_size)
        ends = torch.tensor(counts).cumsum(0)
        self.register_buffer("first", ends - torch.tensor(counts), persistent=False)
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """[M, H] of ids [M, K], input k below its number of categories."""
        columns_MK = self.first + ids
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return _SumOfColumns.apply(columns_MK, self.weight, self.bias)  # type: ignore[no-untyped-call,no-any-return]
        return nn.functional.embedding_bag(columns_MK, self._columns(), mode="sum") + self.bias

    def one_hot(self, ids: Tensor) -> Tensor:
        """What it reads by its meaning: [M, V] zeros and ones."""
        return self.weight.new_zeros(len(ids), self.in_features).scatter_(1, self.first + ids, 1.0)

    def _columns(self) -> Tensor:
        """The weight with its columns in one piece each [V, H]; on a CPU the same tensor until the weight changes."""
        version = (self.weight.data_ptr(), self.weight._version)
        if self.weight.is_cuda or self._kept is None or self._kept[0] != version:
            self._kept = (version, self.weight.t().contiguous())
        return self._kept[1]


class Encoder(nn.Module):
    """Base of all encoders: `forward(obs [M, ...]) -> features [M, F]`, with `output_size` F.

    Args:
        space: observation space of one copy: a Box, or a MultiDiscrete with one axis, which is read one-hot.
    """

    output_size: int
    #: the features of a vector observation are the observation itself
    transparent: bool = False

    def __init__(self, space: Observations) -> None:
        super().__init__()
        categories = isinstance(space, gymnasium.spaces.MultiDiscrete) and len(space.shape) == 1
        if not (isinstance(space, gymnasium.spaces.Box) or categories):
            raise ValueError(f"encoders read a Box or a MultiDiscrete with one axis as observation, not {space}")
        self.space = space
        #: numbers of categories, if the observation is made of categories
        self.counts: list[int] = space.nvec.tolist() if isinstance(space, gymnasium.spaces.MultiDiscrete) else []
        self.uint8 = not self.counts and space.dtype.kind == "u"

    def prepare(self, obs: Tensor) -> Tensor:
        """Observations as floats; bytes are scaled to [0, 1], categories become one-hot."""
        if self.counts:
            ids = obs.long().unbind(-1)
            pairs = zip(ids, self.counts, strict=True)
            return torch.cat([nn.functional.one_hot(x, count) for x, count in pairs], -1).float()
        return obs.float() / 255.0 if self.uint8 else obs


class Identity(Encoder):
    """Passes the flattened observation on; the cell reads it directly, so with rtrl no gradient is truncated."""

    def __init__(self, space: Observations) -> None:
        super().__init__(space)
        self.output_size = sum(self.counts) or math.prod(space.shape)
        self.transparent = len(space.shape) == 1 and not (self.uint8 or self.counts)

    def forward(self, obs: Tensor) -> Tensor:
        return self.prepare(obs).flatten(1)


class MLP(Encoder):
    """Fully connected layers with an activation after each.

    Args:
        space: observation space of one copy.
        hidden: width of each layer.
        activation: tanh, relu or silu.
    """

    def __init__(self, space: Observations, *, hidden: Widths = (64,), activation: str = "tanh") -> None:
        super().__init__(space)
        widths = [sum(self.counts) or math.prod(space.shape), *(int(width) for width in hidden)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            categories = self.counts and not layers
            linear = OneHotLinear(self.counts, width_out) if categories else nn.Linear(width_in, width_out)
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, make_activation(activation)]
        self.layers = nn.Sequential(*layers)
        self.output_size = widths[-1]

    def forward(self, obs: Tensor) -> Tensor:
        if not self.counts or not len(self.layers):
            obs = self.prepare(obs).flatten(1)
        features: Tensor = self.layers(obs)
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
        space: Observations,
        *,
        channels: Widths = (16, 32),
        hidden: Width = 64,
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
