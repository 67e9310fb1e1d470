"""Encoders: observation -> features, row by row (no memory). Shapes: M rows, features F."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from lifelong.envs.options import Width, Widths
from lifelong.envs.spaces import byte_scale

Observations = gymnasium.spaces.Box | gymnasium.spaces.MultiDiscrete

#: its name
Activation = Literal["tanh", "relu", "silu", "crelu"]
#: between a layer and its activation
Norm = Literal["none", "layer"]


class CReLU(nn.Module):
    """Concatenated ReLU: [max(x, 0), max(-x, 0)] along dimension 1, twice as many features as units.

    Whatever x is, one of them has a gradient, so no unit can die (Shang et al. 2016, ICML; against loss of plasticity
    Abbas et al. 2023, CoLLAs).
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.relu(x), nn.functional.relu(-x)], 1)


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "crelu": CReLU}
#: features of a unit
PARTS = {"crelu": 2}


class UnitLayer(NamedTuple):
    """A layer whose rows are units."""

    name: str
    #: gives what the units say
    activation: nn.Module
    #: what normalises them before, with a scale and a shift for each
    norm: str | None


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
    #: it is made of linear and convolution layers in the order they are defined in, each with an activation after it,
    #: maybe a norm between them, each read by the next alone, and the last ones are the features
    chain: ClassVar[bool] = False

    def __init__(self, space: Observations) -> None:
        super().__init__()
        categories = isinstance(space, gymnasium.spaces.MultiDiscrete) and len(space.shape) == 1
        if not (isinstance(space, gymnasium.spaces.Box) or categories):
            raise ValueError(f"encoders read a Box or a MultiDiscrete with one axis as observation, not {space}")
        self.space = space
        #: numbers of categories, if the observation is made of categories
        self.counts: list[int] = space.nvec.tolist() if isinstance(space, gymnasium.spaces.MultiDiscrete) else []
        #: the largest byte, if the observation is made of bytes
        self.largest = byte_scale(space) if isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 else 0.0

    def unit_layers(self) -> list[UnitLayer]:
        """The layers whose rows are units; none if the encoder is no chain."""
        leaves = [(name, module) for name, module in self.named_modules() if not list(module.children())]
        layers = []
        for index, (name, module) in enumerate(leaves[:-1]):
            if isinstance(module, nn.Linear | nn.Conv2d):
                after, following = leaves[index + 1]
                normed = isinstance(following, nn.LayerNorm | nn.GroupNorm)
                activation = leaves[index + 2][1] if normed else following
                layers.append(UnitLayer(name, activation, after if normed else None))
        return layers if self.chain else []

    def prepare(self, obs: Tensor) -> Tensor:
        """Observations as floats; bytes are scaled to [0, 1] by the largest of the space, categories become one-hot."""
        if self.counts:
            ids = obs.long().unbind(-1)
            pairs = zip(ids, self.counts, strict=True)
            return torch.cat([nn.functional.one_hot(x, count) for x, count in pairs], -1).float()
        return obs.float() / self.largest if self.largest else obs


class Identity(Encoder):
    """Passes the flattened observation on; the cell reads it directly, so with rtrl no gradient is truncated."""

    def __init__(self, space: Observations) -> None:
        super().__init__(space)
        self.output_size = sum(self.counts) or math.prod(space.shape)
        self.transparent = len(space.shape) == 1 and not (self.largest or self.counts)

    def forward(self, obs: Tensor) -> Tensor:
        return self.prepare(obs).flatten(1)


class MLP(Encoder):
    """Fully connected layers with an activation after each.

    Args:
        space: observation space of one copy.
        hidden: units of each layer.
        activation: tanh, relu, silu, or crelu, with which a unit has two features.
        norm: `layer`: layer normalisation between every layer and its activation (Ba, Kiros & Hinton 2016; against loss
            of plasticity Lyle et al. 2023, ICML).
    """

    chain: ClassVar[bool] = True

    def __init__(
        self, space: Observations, *, hidden: Widths = (64,), activation: Activation = "tanh", norm: Norm = "none"
    ) -> None:
        super().__init__(space)
        layers: list[nn.Module] = []
        width_in, parts = sum(self.counts) or math.prod(space.shape), PARTS.get(activation, 1)
        for width_out in map(int, hidden):
            categories = self.counts and not layers
            linear = OneHotLinear(self.counts, width_out) if categories else nn.Linear(width_in, width_out)
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
            normed = [nn.LayerNorm(width_out)] if norm == "layer" else []
            layers += [linear, *normed, make_activation(activation)]
            width_in = parts * width_out
        self.layers = nn.Sequential(*layers)
        self.output_size = width_in

    def forward(self, obs: Tensor) -> Tensor:
        if not self.counts or not len(self.layers):
            obs = self.prepare(obs).flatten(1)
        features: Tensor = self.layers(obs)
        return features


#: name of a layout -> where its axes are, in the order of stacked frames (if any), channels (if any), height, width
LAYOUTS: dict[str, tuple[int, ...]] = {
    "hw": (0, 1),
    "chw": (0, 1, 2),
    "hwc": (2, 0, 1),
    "nchw": (0, 1, 2, 3),
    "nhwc": (0, 3, 1, 2),
}


def layout_of(shape: tuple[int, ...], layout: str) -> str:
    """The layout of images of `shape`: the one given, or with `auto` the only one that it can be.

    An axis of at most 4 entries is one of channels; two axes are an image of one channel.

    Raises:
        ValueError: a layout with another number of axes; `auto` where several are possible.
    """
    if layout != "auto":
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}; valid: auto, {', '.join(LAYOUTS)}")
        if len(layout) != len(shape):
            raise ValueError(f"layout {layout} has {len(layout)} axes, but images have shape {shape}")
        return layout
    if len(shape) == 2:
        return "hw"
    if len(shape) not in (3, 4):
        raise ValueError(f"cnn reads images with 2 to 4 axes, not shape {shape}; use the mlp encoder")
    if len(shape) == 3 and (shape[0] <= 4) != (shape[2] <= 4):
        return "chw" if shape[0] <= 4 else "hwc"
    choices = "chw or hwc" if len(shape) == 3 else "nchw or nhwc (n: stacked frames)"
    raise ValueError(
        f"cnn cannot tell which axis of images of shape {shape} holds the channels; set layout to {choices}"
    )


class CNN(Encoder):
    """A small convolutional net for images.

    Args:
        space: observation space of one copy.
        layout: what the axes are: hw, chw, hwc, or with stacked frames nchw, nhwc (frames become channels, oldest first
            as they come); auto if there is only one way to read the shape.
        channels: output channels of each 3x3 convolution; every one but the first halves the image (stride 2).
        hidden: units of the final linear layer.
        activation: tanh, relu, silu, or crelu, with which a unit has two features.
        norm: `layer`: layer normalisation between every layer and its activation, of a convolution over channels and
            pixels.
    """

    chain: ClassVar[bool] = True

    def __init__(
        self,
        space: Observations,
        *,
        layout: Literal["auto", "hw", "chw", "hwc", "nchw", "nhwc"] = "auto",
        channels: Widths = (16, 32),
        hidden: Width = 64,
        activation: Activation = "relu",
        norm: Norm = "none",
    ) -> None:
        super().__init__(space)
        if self.counts:
            raise ValueError(f"cnn reads images, not categories {space}; use the mlp encoder")
        self.layout = layout_of(space.shape, layout)
        example = self._image(torch.zeros(1, *space.shape))
        channels_in = example.shape[1]
        layers: list[nn.Module] = []
        for index, width in enumerate(channels):
            layers += [nn.Conv2d(channels_in, int(width), 3, stride=1 if index == 0 else 2, padding=1)]
            layers += [nn.GroupNorm(1, int(width))] if norm == "layer" else []
            layers += [make_activation(activation)]
            channels_in = PARTS.get(activation, 1) * int(width)
        self.convolutions = nn.Sequential(*layers)
        with torch.no_grad():
            flat = self.convolutions(example).numel()
        normed = [nn.LayerNorm(hidden)] if norm == "layer" else []
        self.linear = nn.Sequential(nn.Linear(flat, hidden), *normed, make_activation(activation))
        self.output_size = PARTS.get(activation, 1) * hidden

    def _image(self, obs: Tensor) -> Tensor:
        """[M, C, H, W]."""
        image = self.prepare(obs).permute(0, *(1 + axis for axis in LAYOUTS[self.layout]))
        return image.reshape(len(image), -1, *image.shape[-2:])

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.linear(self.convolutions(self._image(obs)).flatten(1))
        return features
