"""A learned update rule that does not care how units are ordered (Zhou, Finn & Harrison 2024, "Universal Neural
Functionals", NeurIPS, arXiv 2402.05232, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.modules.unf import SHIPPED, Groups, Rule, Structure
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.units import layers_of
from lifelong.envs.options import Weight

#: of the running means of gradients, and of their squares
MOMENTS = {"short": 0.9, "long": 0.99}
SQUARES = {"lately": 0.99, "ever": 0.9999}
#: of the step of its tensor, at most three of which an entry is pushed
PUSH = 0.1
TINY = 1e-12


class UNF(Strategy):
    """The step that the optimiser makes is changed by a network over all parameters,

        delta_i <- delta_i exp(strength g_i) + 0.1 rms(delta) strength p_i    (g, p) = f(x),

    that is equivariant to permutations of the policy's units (see `agent.modules.unf`). Of every entry it sees the
    gradient, its running means over 10 and 100 updates, the step, the parameter, all relative to the root mean square
    of its tensor, the logarithms of the running means of the squared gradient over 100 and 10,000 updates, and whether
    the step leads away from zero. The rule that is shipped was made by benchmarks/unf.py: on short streams of tasks so
    that steps lower the loss of the tasks before as well as that of the task in training.

    Args:
        strength: 0: nothing is changed.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(self, *, strength: Weight = 1.0) -> None:
        self.strength, self.rule = strength, Rule.load(SHIPPED)
        self.gain: Tensor | None = None

    def setup(self, ctx: Context, seed: int) -> None:
        self.parameters = dict(ctx.policy.named_parameters())
        self.rule.to(ctx.device)
        self.where = self.structure(ctx)
        zeros = torch.zeros(len(self.where.tensor.place), device=ctx.device)
        self.kept = {name: zeros.clone() for name in (*MOMENTS, *SQUARES)}
        self.updates = torch.zeros((), device=ctx.device)

    def structure(self, ctx: Context) -> Structure:
        """Who makes and who reads every entry.

        Raises:
            ValueError: the cell does not say what its parameters read.
        """
        unit = 0
        found: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
        layers = layers_of(ctx.policy)
        units = sum(layer.size for layer in layers)
        for layer in layers:
            numbers = torch.arange(unit, unit + layer.size, device=ctx.device).unsqueeze(1)
            for kept, parts in zip(found, (layer.incoming, layer.outgoing), strict=True):
                for part in parts:
                    shape = self.parameters[part.parameter].shape
                    line = torch.full((shape[part.dim],), units, device=ctx.device)
                    line[part.index] = numbers.expand_as(part.index)
                    line = line.view([-1 if d == part.dim else 1 for d in range(len(shape))])
                    kept[part.parameter] = line.expand(shape).flatten()
            unit += layer.size
        none = {n: torch.full((p.numel(),), units, device=ctx.device) for n, p in self.parameters.items()}
        writer, reader = (torch.cat([kept.get(name, none[name]) for name in self.parameters]) for kept in found)
        sizes = torch.tensor([p.numel() for p in self.parameters.values()], device=ctx.device)
        tensor = torch.arange(len(sizes), device=ctx.device).repeat_interleave(sizes)
        return Structure(Groups.of(writer, units), Groups.of(reader, units), Groups.of(tensor, len(sizes)))

    def root(self, x_P: Tensor) -> Tensor:
        """The root mean square of its tensor, for every entry."""
        tensor = self.where.tensor
        return tensor.spread(tensor.mean(x_P.square().unsqueeze(1)).sqrt()).squeeze(1)

    def look(self, delta_P: Tensor) -> Tensor:
        """What is seen of every entry before its step, [P, CHANNELS]; the running means take the gradient in."""
        every = self.parameters.values()
        gradient_P = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in every])
        value_P = torch.cat([p.detach().flatten() for p in every]) - delta_P
        self.updates += 1
        for name, decay in MOMENTS.items():
            self.kept[name].lerp_(gradient_P, 1 - decay)
        for name, decay in SQUARES.items():
            self.kept[name].lerp_(gradient_P.square(), 1 - decay)
        long = [self.kept[name] / (1 - decay**self.updates) for name, decay in MOMENTS.items()]
        seen = [x / self.root(x).clamp(min=TINY) for x in (gradient_P, *long, delta_P, value_P)]
        squares = [self.kept[name] for name in SQUARES]
        ratios = [x / self.root(x.sqrt()).square().clamp(min=TINY) for x in squares]
        logs = [(x + 1e-4).log() / 4 for x in ratios]
        return torch.stack([*(x.clamp(-5, 5) for x in seen), *logs, (delta_P * value_P).sign()], 1)

    def changed(self, delta_P: Tensor, x_PC: Tensor) -> Tensor:
        """The step that is made in place of `delta_P`."""
        longer, push = self.rule(x_PC, self.where)
        self.gain = longer.detach().mean().exp()
        changed: Tensor = delta_P * (self.strength * longer).exp() + PUSH * self.strength * self.root(delta_P) * push
        return changed

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        delta_P = torch.cat([deltas[name].flatten() for name in self.parameters])
        self.write(self.changed(delta_P, self.look(delta_P)), deltas)

    def write(self, delta_P: Tensor, deltas: Mapping[str, Tensor]) -> None:
        """Put all entries back where they belong."""
        parts = delta_P.split([p.numel() for p in self.parameters.values()])
        for name, part in zip(self.parameters, parts, strict=True):
            deltas[name].copy_(part.view_as(deltas[name]))

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """What was seen of entries that begin anew is forgotten."""
        empty = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        mask_P = torch.cat([entries.get(name, empty[name]).flatten() for name in self.parameters])
        for kept in self.kept.values():
            kept.masked_fill_(mask_P, 0.0)

    def report(self) -> dict[str, float]:
        """The geometric mean of what steps are multiplied by."""
        return {} if self.gain is None else {"gain": float(self.gain)}

    def split(self, kept_P: Tensor) -> dict[str, Tensor]:
        """By parameter."""
        parts = kept_P.split([p.numel() for p in self.parameters.values()])
        return {n: x.view_as(p) for (n, p), x in zip(self.parameters.items(), parts, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        kept = {name: self.split(x) for name, x in self.kept.items()}
        return {**super().state_dict(), "kept": kept, "updates": self.updates, "gain": self.gain}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        for name, parts in saved["kept"].items():
            grew = [grown(parts[n], torch.zeros_like(p)) for n, p in self.parameters.items()]
            self.kept[name] = torch.cat([x.flatten() for x in grew])
        self.updates, self.gain = saved["updates"].to(self.updates), saved["gain"]
