"""Encoders: observation -> features, row by row (no memory). Shapes: M rows, features F."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from lifelong.envs.options import Range, Width, Widths
from lifelong.envs.spaces import byte_scale
from lifelong.kernels.acting import place
from lifelong.kernels.dense import ACTIVATIONS as ACTIVATION_CODES
from lifelong.kernels.dense import Dense, available
from lifelong.kernels.loop import Call, Calls, Direct, Each, by_round

Observations = gymnasium.spaces.Box | gymnasium.spaces.MultiDiscrete

#: its name
Activation = Literal["tanh", "relu", "leaky_relu", "silu", "crelu", "rational"]
#: how often a block is applied
Depth = Annotated[int, Range(1, 1000)]
#: steps of a pattern
Period = Annotated[int, Range(2, 10_000)]
#: between a layer and its activation
Norm = Literal["none", "layer"]
#: the same, and of the weights of a linear layer
LinearNorm = Literal["none", "layer", "weight"]


class CReLU(nn.Module):
    """Concatenated ReLU: [max(x, 0), max(-x, 0)] along dimension 1, twice as many features as units.

    Whatever x is, one of them has a gradient, so no unit can die (Shang et al. 2016, ICML; against loss of plasticity
    Abbas et al. 2023, CoLLAs).
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.relu(x), nn.functional.relu(-x)], 1)


class Rational(nn.Module):
    """R(x) = sum_{j<=5} a_j x^j / (1 + sum_{1<=k<=4} |b_k x^k|), one for all units of a layer; its ten numbers learn.

    They begin near the leaky ReLU with slope 0.01, within 0.03 on [-3, 3] (Delfosse et al. 2024, ICLR, "Adaptive
    rational activations to boost deep reinforcement learning"; Molina et al. 2020, version A). It grows without bound,
    so what it reads had better be normalised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numerator = nn.Parameter(torch.tensor([0.02979, 0.61837, 2.32331, 3.05194, 1.48542, 0.25102]))
        self.denominator = nn.Parameter(torch.tensor([-1.14195, 4.39316, 0.87147, 0.34720]))

    def forward(self, x: Tensor) -> Tensor:
        above, below, power = self.numerator[0] + self.numerator[1] * x, torch.ones_like(x), x
        for k in range(4):
            below = below + (self.denominator[k] * power).abs()
            power = power * x
            above = above + self.numerator[k + 2] * power if k + 2 < 6 else above
        return above / below


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "crelu": CReLU,
    "rational": Rational,
}
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


@torch.no_grad()
def sparse_(weight: Tensor, share: float) -> None:
    """Draw a weight [out, in] anew: zeros in a `share` of each row (rounded up, but not all), the others uniformly
    within 1 / sqrt(in)."""
    inputs = weight.shape[1]
    weight.uniform_(-(inputs**-0.5), inputs**-0.5)
    zeros = min(math.ceil(share * inputs), inputs - 1)
    chosen = torch.rand_like(weight).argsort(1)[:, :zeros]
    weight.scatter_(1, chosen, 0.0)


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


class WeightNorm(nn.Module):
    """y = g v x / |v| + b, row by row: how long the weights of a unit are learns apart from where they point.

    Salimans & Kingma 2016, arXiv 1602.07868, eq. 2.

    The gradient of v has no part along v, so v only grows, and the larger it is the smaller its steps are. g begins as
    |v|, so that it is the same function as without; nothing is read off data.

    Args:
        input_size: of x.
        output_size: of y.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(nn.init.orthogonal_(torch.empty(output_size, input_size), 2**0.5))
        self.gain = nn.Parameter(self.direction.detach().norm(dim=1))
        self.bias = nn.Parameter(torch.zeros(output_size))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gain / self.direction.norm(dim=1)
        return nn.functional.linear(x, self.direction) * scale + self.bias


class Encoder(nn.Module):
    """Base of all encoders: `forward(obs [M, ...]) -> features [M, F]`, with `output_size` F.

    Args:
        space: observation space of one copy: a Box, or a MultiDiscrete with one axis, which is read one-hot.
    """

    output_size: int
    #: how many numbers `offset` adds to the mean of a prediction
    predicted: int = 0
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

    def compiled(self) -> bool:
        """Whether `act_calls` can be used; by default where the features are the observation itself."""
        return self.transparent

    def act_calls(self, obs: Tensor, features: Tensor) -> Calls:
        """`forward` of row t of the observations [T, B, ...] into that of `features` [T, B, F], for `kernels.loop`."""
        return Calls([], [place(obs, features)])

    def offset(self, obs: Tensor) -> Tensor | None:
        """What is added to the mean of a prediction, [..., A] of observations [..., *obs shape]; None: nothing."""
        return None

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
        activation: tanh, relu, leaky_relu, silu, rational, or crelu, with which a unit has two features.
        norm: `layer`: layer normalisation between every layer and its activation (Ba, Kiros & Hinton 2016; against loss
            of plasticity Lyle et al. 2023, ICML); `weight`: weights with a length and a direction (see `WeightNorm`).
        sparse: this share of a unit's weights begins at zero, the others uniformly within 1 / sqrt(inputs), so that
            units begin with little in common (Elsayed et al. 2024, arXiv 2410.14606, algorithm 1); 0: orthogonal.
    """

    chain: ClassVar[bool] = True

    def __init__(
        self,
        space: Observations,
        *,
        hidden: Widths = (64,),
        activation: Activation = "tanh",
        norm: LinearNorm = "none",
        sparse: Annotated[float, Range(0.0, 0.999)] = 0.0,
    ) -> None:
        super().__init__(space)
        if sparse and norm == "weight":
            raise ValueError("weights that have a direction cannot begin sparse; set sparse to 0 or norm to layer")
        layers: list[nn.Module] = []
        width_in, parts = sum(self.counts) or math.prod(space.shape), PARTS.get(activation, 1)
        for width_out in map(int, hidden):
            linear: nn.Module
            if norm == "weight":
                linear = WeightNorm(width_in, width_out)
            else:
                categories = self.counts and not layers
                linear = OneHotLinear(self.counts, width_out) if categories else nn.Linear(width_in, width_out)
                nn.init.orthogonal_(linear.weight, 2**0.5)
                nn.init.zeros_(linear.bias)
                if sparse:
                    sparse_(linear.weight, sparse)
            normed = [nn.LayerNorm(width_out)] if norm == "layer" else []
            layers += [linear, *normed, make_activation(activation)]
            width_in = parts * width_out
        self.layers = nn.Sequential(*layers)
        self.weight_norm = norm == "weight"
        self.output_size = width_in
        vector = bool(self.counts) or (len(space.shape) == 1 and not self.largest)
        #: of compiled layers, if there are such
        self._activation = activation if vector and norm == "none" and activation in ACTIVATION_CODES and layers else ""

    def compiled(self) -> bool:
        return bool(self._activation) and available(next(self.parameters()))

    def act_calls(self, obs: Tensor, features: Tensor) -> Calls:
        layers: list[tuple[str, Dense, Tensor, Tensor]] = []  # with rows of inputs and outputs
        linears = [(name, layer) for name, layer in self.layers.named_children() if isinstance(layer, nn.Linear)]
        x = obs
        for name, linear in linears:
            offsets = linear.first if isinstance(linear, OneHotLinear) else None
            layer = Dense(linear.weight, linear.bias, self._activation, offsets, rows=obs.shape[1])
            y = features if name == linears[-1][0] else features.new_empty(*obs.shape[:2], layer.outputs)
            layers.append((f"layers.{name}", layer, x, y))
            x = y

        def backward(rounds: int, slopes: Tensor, grads: Mapping[str, Tensor]) -> list[Call | Direct]:
            calls: list[Call | Direct] = []
            dy, steps = slopes, len(slopes) // obs.shape[1]
            for name, layer, x, y in reversed(layers):
                dx = None if x is obs else slopes.new_empty(len(slopes), layer.inputs)
                dz = dy if layer.outputs == layer.units else slopes.new_empty(len(slopes), layer.units)
                into = grads[f"{name}.weight"], grads[f"{name}.bias"], dx
                calls += layer.backward(
                    by_round(x, rounds, steps), by_round(y, rounds, steps), dy, dz, *into, add=False
                )
                dy = slopes if dx is None else dx
            return calls

        pack: list[Call | Direct] = [call for _, layer, _, _ in layers for call in layer.pack()]
        return Calls(pack, [layer.forward(Each(x), Each(y)) for _, layer, x, y in layers], backward)

    def forward(self, obs: Tensor) -> Tensor:
        if not self.counts or not len(self.layers) or self.weight_norm:
            obs = self.prepare(obs).flatten(1)
        features: Tensor = self.layers(obs)
        return features


class DepthRecurrent(Encoder):
    """One block applied `depth` times to h, which begins at zero and reads the observation anew every time:

        h <- norm(h + W_2 silu(W_1 [h, e]))    e = W_e x

    As the block is the same each time, `depth` may be another one when the policy is used than when it was trained
    (Schwarzschild et al. 2021, NeurIPS, "Can you learn an algorithm?"; with recall Bansal et al. 2022; Geiping et al.
    2025 for language models). Nothing of it is carried from one step to the next.

    Args:
        space: observation space of one copy.
        hidden: units of h, e and the block.
        depth: how often it is applied.
    """

    def __init__(self, space: Observations, *, hidden: Width = 64, depth: Depth = 4) -> None:
        super().__init__(space)
        self.depth = depth
        width = sum(self.counts) or math.prod(space.shape)
        self.embed = OneHotLinear(self.counts, hidden) if self.counts else nn.Linear(width, hidden)
        self.inner, self.outer = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.output_size = hidden

    def forward(self, obs: Tensor) -> Tensor:
        e = self.embed(obs if self.counts else self.prepare(obs).flatten(1))
        h = torch.zeros_like(e)
        for _ in range(self.depth):
            h = self.norm(h + self.outer(nn.functional.silu(self.inner(torch.cat([h, e], -1)))))
        return h


class Cycle(Encoder):
    """The cell reads x - Q[phase], and Q[phase + 1] is added to the mean of what it predicts: a pattern that repeats is
    learned apart from what happens around it.

    Lin et al. 2024, NeurIPS, arXiv 2409.18479, "CycleNet: Enhancing Time Series Forecasting through Modeling Periodic
    Patterns", section 3.2, one step ahead. The last entry of an observation is the phase, an integer; the entries
    before it are the values x, and actions are predictions of the next ones.

    Args:
        space: observation space of one copy.
        period: steps after which the pattern comes again; phases are taken modulo it.
    """

    def __init__(self, space: Observations, *, period: Period = 24) -> None:
        super().__init__(space)
        if self.counts or self.largest or len(space.shape) != 1 or space.shape[0] < 2:
            raise ValueError(f"encoder cycle reads a vector of values and, at last, a phase, not {space}")
        self.period, self.output_size = period, space.shape[0] - 1
        self.predicted = self.output_size
        self.pattern = nn.Parameter(torch.zeros(period, self.output_size))

    def forward(self, obs: Tensor) -> Tensor:
        return obs[..., :-1] - self.pattern[self._phase(obs)]

    def offset(self, obs: Tensor) -> Tensor:
        return self.pattern[(self._phase(obs) + 1) % self.period]

    def _phase(self, obs: Tensor) -> Tensor:
        return obs[..., -1].long() % self.period
