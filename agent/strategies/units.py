"""Units and how they begin anew: what belongs to a unit of the policy, how active it is, and a reset of some of them.

A unit of a layer has incoming parameters (its row of the weight and its bias; in a cell the rows of all gates, their
biases and its element-wise recurrent weights) and outgoing ones (the column of everything that reads it: recurrent
weights, output gates, the next layer, actor and critic). A reset draws the incoming ones as the module's initialisation
does, sets the outgoing ones to zero, so that what the policy says moves only by what the unit has contributed, and
zeroes what the optimiser keeps of these entries. Memory and carry of a cell's unit are zeroed by the trainer; a unit of
an encoder has neither.

Adam counts its steps once a tensor, so the count stays and the moments of a unit's entries grow from zero without bias
correction: t steps after a reset an entry with a steady gradient moves (1 - b1^t) / sqrt(1 - b2^t) times as far as it
should, up to 6.6 times with the default betas (0.9, 0.999), never more than once with equal ones; (0.99, 0.99) is what
Dohare et al. 2024 use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.modules.encoders import CReLU
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.plasticity import stride
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.initial import Redrawing, reinitialise

CELL = "cell"


@dataclass(frozen=True)
class Entries:
    """The entries of a parameter that belong to the N units of a layer: along `dim`, `index` [N, K] (int64)."""

    parameter: str
    dim: int
    index: Tensor

    def of(self, units: Tensor) -> Tensor:
        """Positions along `dim` of the entries of `units` (int64)."""
        return self.index[units].flatten()


@dataclass(frozen=True)
class Layer:
    """A layer of units. `activation` gives what an encoder's units say; None: it is the cell."""

    name: str
    size: int
    incoming: list[Entries]
    outgoing: list[Entries]
    activation: nn.Module | None = None


def layers_of(policy: Policy) -> list[Layer]:
    """The layers of units of a policy: those of its encoder, then the cell's.

    Raises:
        ValueError: the cell does not say what its parameters read.
    """
    parameters = dict(policy.named_parameters())

    def entries(name: str, dim: int, size: int, *, blocks: int = 1, width: int | None = None) -> Entries:
        """In each of `blocks` blocks (gates, parts of an activation) every unit has some entries that are neighbours
        (pixels of a channel). `width`: entries along `dim` that are the units'; all by default."""
        length = width or parameters[name].shape[dim]
        table = torch.arange(length, device=parameters[name].device)
        return Entries(name, dim, table.view(blocks, size, -1).transpose(0, 1).reshape(size, -1))

    cell, hidden = policy.cell, policy.encoder.unit_layers()
    names = [f"encoder.{layer.name}" for layer in hidden]
    rows, columns = cell.unit_parameters()
    first, units = [f"{CELL}.{name}" for name in cell.input_weights()], cell.units
    layers = []
    for unit_layer, (name, following) in zip(hidden, pairwise([*names, CELL]), strict=True):
        size, activation = len(parameters[f"{name}.weight"]), unit_layer.activation
        modules = [name, *([f"encoder.{unit_layer.norm}"] if unit_layer.norm else [])]
        its = [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
        incoming = [entries(n, 0, size) for n in its if n in parameters]
        parts = 2 if isinstance(activation, CReLU) else 1
        if following == CELL:  # the features come first in what the cell reads
            outgoing = [entries(n, 1, size, blocks=parts, width=parts * size) for n in first]
        else:
            outgoing = [entries(f"{following}.weight", 1, size, blocks=parts)]
        layers.append(Layer(name, size, incoming, outgoing, activation))
    gates = {name: policy.cell.get_parameter(name).shape[dim] // units for name, dim in rows.items()}
    incoming = [entries(f"{CELL}.{name}", dim, units, blocks=gates[name]) for name, dim in rows.items()]
    outgoing = [
        entries(f"{CELL}.{n}", d, units, blocks=cell.get_parameter(n).shape[d] // units) for n, d in columns.items()
    ]
    for name, module in policy.named_modules():
        if (
            name.startswith(("actor", "critic"))
            and isinstance(module, nn.Linear)
            and module.in_features == cell.output_size
        ):
            outgoing.append(entries(f"{name}.weight", 1, units, blocks=cell.output_size // units))
    return [*layers, Layer(CELL, units, incoming, outgoing)]


def spread(value_N: Tensor, part: Entries, parameter: Tensor) -> Tensor:
    """What is given for every unit, at its entries of a parameter and 0 elsewhere; of the parameter's shape."""
    along = value_N.new_zeros(parameter.shape[part.dim])
    along[part.index] = value_N.unsqueeze(1)
    shape = [1] * parameter.dim()
    shape[part.dim] = -1
    return along.view(shape).expand_as(parameter)


@torch.no_grad()
def activations(policy: Policy, layers: list[Layer], experience: Experience) -> dict[str, Tensor]:
    """What the units said in a chunk: name of the layer -> [M, N]. A convolution has a row for every pixel; of a cell
    it is the state before each step, with two parts of state the first, which is its output."""
    seen: dict[str, Tensor] = {}

    def remember(layer: Layer, output: Tensor) -> None:
        said = output.movedim(1, -1).flatten(0, -2)
        seen[layer.name] = said.unflatten(1, (-1, layer.size)).sum(1)  # of two parts at most one is not zero

    hooks = [
        layer.activation.register_forward_hook(lambda _, __, output, layer=layer: remember(layer, output))
        for layer in layers
        if layer.activation is not None
    ]
    chunk = experience.chunk
    every = stride(chunk.steps, chunk.copies)
    if hooks:
        policy.encoder(chunk.obs.flatten(0, 1)[::every])
    for hook in hooks:
        hook.remove()
    state_MS = experience.state_TBS.flatten(0, 1)[::every]
    return {**seen, CELL: state_MS[:, : policy.cell.units]}


@torch.no_grad()
def reset(ctx: Context, chosen: list[tuple[Layer, Tensor]], generator: torch.Generator) -> None:
    """Re-initialise units (int64) of some layers; memory and carry of the cell's are left to the trainer."""
    fresh, entries = ctx.policy.redrawn(generator), {}
    for layer, units in chosen:
        for part in (*layer.incoming, *layer.outgoing):
            if part.parameter not in entries:
                entries[part.parameter] = torch.zeros_like(fresh[part.parameter], dtype=torch.bool)
            entries[part.parameter].index_fill_(part.dim, part.of(units), True)
        for part in layer.outgoing:  # zero, even where another unit hears it
            fresh[part.parameter].index_fill_(part.dim, part.of(units), 0.0)
    reinitialise(ctx, fresh, entries)


class UnitStrategy(Redrawing):
    """Base of those that re-initialise units by what they do: looks at every chunk, and keeps running means of it.

    The activity of a unit is mean |h|, in a cell mean |h - running mean of h|: what a recurrent unit always says could
    as well be a bias. Subclasses say what is kept of it (`worth`) and who begins anew (`choose`).

    Args:
        decay: of the running means, once a chunk.
    """

    data_parallel: ClassVar[str] = "reduce"

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def worth(self, ctx: Context, layer: Layer, activity_N: Tensor) -> Tensor:
        """What the running mean is kept of, [N]; the activity itself by default."""
        return activity_N

    def choose(self, layer: Layer, worth_N: Tensor, age_N: Tensor) -> Tensor:
        """Units (int64) to be re-initialised.

        Args:
            layer: whose.
            worth_N: running mean of `worth`, without the bias of its start.
            age_N: chunks since the unit began (int64, on the host).
        """
        raise NotImplementedError

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.layers = layers_of(ctx.policy)
        sizes = {layer.name: layer.size for layer in self.layers}
        self.mean = {name: torch.zeros(size, device=ctx.device) for name, size in sizes.items()}
        self.kept = {name: torch.zeros(size, device=ctx.device) for name, size in sizes.items()}
        self.age = {name: torch.zeros(size, dtype=torch.int64) for name, size in sizes.items()}
        self.resets = dict.fromkeys(sizes, 0)

    @torch.no_grad()
    def after_chunk(self, ctx: Context, experience: Experience) -> Tensor | None:
        said = activations(ctx.policy, self.layers, experience)
        means = {name: h_MN.mean(0) for name, h_MN in said.items()}
        ctx.workers.mean_(list(means.values()))
        for name, mean_N in means.items():
            self.age[name] += 1
            self.mean[name].lerp_(mean_N, 1 - self.decay)
        running = self.unbiased(self.mean)
        activity = {n: ((h - running[n]) if n == CELL else h).abs().mean(0) for n, h in said.items()}
        ctx.workers.mean_(list(activity.values()))
        for layer in self.layers:
            self.kept[layer.name].lerp_(self.worth(ctx, layer, activity[layer.name]), 1 - self.decay)
        worth = self.unbiased(self.kept)
        everyone = [(layer, self.choose(layer, worth[layer.name], self.age[layer.name])) for layer in self.layers]
        chosen = [(layer, units.to(ctx.device)) for layer, units in everyone if len(units)]
        if not chosen:
            return None
        reset(ctx, chosen, self.generator)
        for layer, units in chosen:
            self.resets[layer.name] += len(units)
            for kept in (self.mean, self.kept, self.age):
                kept[layer.name][units.to(kept[layer.name].device)] = 0
        return next((units for layer, units in chosen if layer.name == CELL), None)

    def unbiased(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Running means that began at zero with the unit, as if they had not."""
        return {name: mean / (1 - self.decay ** self.age[name].to(mean)) for name, mean in means.items()}

    def report(self) -> dict[str, float]:
        """Units re-initialised so far in every layer."""
        return {f"resets/{name}": float(count) for name, count in self.resets.items()}

    def state_dict(self) -> dict[str, Any]:
        held = {"mean": self.mean, "kept": self.kept, "age": self.age, "resets": self.resets}
        return {**super().state_dict(), **held}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        for name in self.resets:
            self.mean[name].copy_(saved["mean"][name])
            self.kept[name].copy_(saved["kept"][name])
            self.age[name].copy_(saved["age"][name])
        self.resets = dict(saved["resets"])
