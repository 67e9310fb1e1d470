"""Encoders of images. Shapes: M rows, C channels, features F."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lifelong.agent.modules.encoders import PARTS, Activation, Encoder, Norm, Observations, make_activation
from lifelong.envs.options import Width, Widths

#: what the axes of an image are
Layout = Literal["auto", "hw", "chw", "hwc", "nchw", "nhwc"]
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
        raise ValueError(f"an image has 2 to 4 axes, not shape {shape}; use the mlp encoder")
    if len(shape) == 3 and (shape[0] <= 4) != (shape[2] <= 4):
        return "chw" if shape[0] <= 4 else "hwc"
    choices = "chw or hwc" if len(shape) == 3 else "nchw or nhwc (n: stacked frames)"
    raise ValueError(
        f"cnn cannot tell which axis of images of shape {shape} holds the channels; set layout to {choices}"
    )


class ImageEncoder(Encoder):
    """Base of those that read images: `convolutions`, and a linear layer on what they say.

    Args:
        space: observation space of one copy.
        layout: what the axes are: hw, chw, hwc, or with stacked frames nchw, nhwc (frames become channels, oldest first
            as they come); auto if there is only one way to read the shape.

    Raises:
        ValueError: a space without images, or images that are too small.
    """

    def __init__(self, space: Observations, layout: Layout = "auto") -> None:
        super().__init__(space)
        if self.counts:
            raise ValueError(f"cnn reads images, not categories {space}; use the mlp encoder")
        self.layout = layout_of(space.shape, layout)
        #: channels, height and width
        self.shape = tuple(self.image(torch.zeros(1, *space.shape)).shape[1:])

    def image(self, obs: Tensor) -> Tensor:
        """[M, C, H, W]."""
        image = self.prepare(obs).permute(0, *(1 + axis for axis in LAYOUTS[self.layout]))
        return image.reshape(len(image), -1, *image.shape[-2:])

    def finish(self, convolutions: nn.Sequential, hidden: int, activation: Activation, norm: Norm = "none") -> None:
        """Put a linear layer with an activation behind the convolutions."""
        self.convolutions = convolutions
        with torch.no_grad():
            flat = convolutions(torch.zeros(1, *self.shape)).numel()
        normed = [nn.LayerNorm(hidden)] if norm == "layer" else []
        self.linear = nn.Sequential(nn.Linear(flat, hidden), *normed, make_activation(activation))
        self.output_size = PARTS.get(activation, 1) * hidden

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.linear(self.convolutions(self.image(obs)).flatten(1))
        return features


class CNN(ImageEncoder):
    """A small convolutional net.

    Args:
        space: observation space of one copy.
        layout: see `ImageEncoder`.
        channels: output channels of each 3x3 convolution; every one but the first halves the image (stride 2).
        hidden: units of the final linear layer.
        activation: tanh, relu, silu, rational, or crelu, with which a unit has two features.
        norm: `layer`: layer normalisation between every layer and its activation, of a convolution over channels and
            pixels.
    """

    chain: ClassVar[bool] = True

    def __init__(
        self,
        space: Observations,
        *,
        layout: Layout = "auto",
        channels: Widths = (16, 32),
        hidden: Width = 64,
        activation: Activation = "relu",
        norm: Norm = "none",
    ) -> None:
        super().__init__(space, layout)
        layers: list[nn.Module] = []
        channels_in = self.shape[0]
        for index, width in enumerate(channels):
            layers += [nn.Conv2d(channels_in, int(width), 3, stride=1 if index == 0 else 2, padding=1)]
            layers += [nn.GroupNorm(1, int(width))] if norm == "layer" else []
            layers += [make_activation(activation)]
            channels_in = PARTS.get(activation, 1) * int(width)
        self.finish(nn.Sequential(*layers), hidden, activation, norm)


class NatureCNN(ImageEncoder):
    """The three convolutions of Mnih et al. 2015 (Nature 518, methods): 32 of 8x8 with stride 4, 64 of 4x4 with stride
    2, 64 of 3x3, each with a ReLU, and a linear layer.

    Weights begin orthogonal with gain sqrt(2), biases at zero.

    Args:
        space: observation space of one copy; images of at least 36 x 36 pixels.
        layout: see `ImageEncoder`.
        hidden: units of the linear layer.
        activation: tanh, relu, silu, rational, or crelu, with which a unit has two features.
    """

    chain: ClassVar[bool] = True

    def __init__(
        self, space: Observations, *, layout: Layout = "auto", hidden: Width = 512, activation: Activation = "relu"
    ) -> None:
        super().__init__(space, layout)
        if min(self.shape[1:]) < 36:
            raise ValueError(
                f"nature_cnn reads images of at least 36 x 36 pixels, not {space.shape}; use the encoder cnn"
            )
        layers: list[nn.Module] = []
        channels_in, parts = self.shape[0], PARTS.get(activation, 1)
        for width, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            layers += [nn.Conv2d(channels_in, width, kernel, stride), make_activation(activation)]
            channels_in = parts * width
        self.finish(nn.Sequential(*layers), hidden, activation)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(module.weight, 2**0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.layers(x)
        return result


class ImpalaCNN(ImageEncoder):
    """The deep residual network of IMPALA (Espeholt et al. 2018, figure 3): stages of a 3x3 convolution, a maximum over
    3x3 pixels with stride 2 and two residual blocks, then a ReLU and a linear layer with another.

    Args:
        space: observation space of one copy.
        layout: see `ImageEncoder`.
        channels: of each stage.
        hidden: units of the linear layer.
    """

    def __init__(
        self,
        space: Observations,
        *,
        layout: Layout = "auto",
        channels: Widths = (16, 32, 32),
        hidden: Width = 256,
    ) -> None:
        super().__init__(space, layout)
        layers: list[nn.Module] = []
        channels_in = self.shape[0]
        for width in map(int, channels):
            layers += [
                nn.Conv2d(channels_in, width, 3, padding=1),
                nn.MaxPool2d(3, 2, 1),
                Residual(width),
                Residual(width),
            ]
            channels_in = width
        self.finish(nn.Sequential(*layers, nn.ReLU()), hidden, "relu")
