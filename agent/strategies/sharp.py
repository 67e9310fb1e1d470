"""SHARP: units that a task uses become its own and are frozen, and what is not used yet cannot reach them.

Gurbuz, Moorman & Dovrolis 2024, *SHARP: Sparsity and Hidden Activation Replay for neuro-inspired continual learning*
(ICDL), after NISPA by the same authors (2022, ICML; arXiv 2206.09117).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lifelong.agent.errors import choice
from lifelong.agent.growth import grown
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.dst import largest
from lifelong.agent.strategies.initial import Redrawing, reinitialise
from lifelong.agent.strategies.units import CELL, Entries, Layer, activations, layers_of, reset, spread
from lifelong.envs.options import Count, Range

#: ages of units: not used yet, used by the task in training; older ones are frozen
PLASTIC, USED = 0, 1


class Sharp(Redrawing):
    """Every matrix whose rows are units has a share of its connections. At the end of a phase the smallest set of units
    whose summed activity reaches the share q of its layer's is used by the task, the others are plastic; connections
    from plastic units to others are dropped, and as many grow at random, with weight 0, into plastic ones. q falls,

        q_p = max(active, (1 + cos(pi p / phases)) / 2)    p = 0, 1, ... in each task

    so that a task gives back what it hardly uses. When the task ends, units that it uses are frozen: all that comes
    into them stays, and nothing that may still move reaches them. So what they say on old inputs stays bit for bit, a
    recurrent unit's memory, too. Plastic ones begin anew, their memory and carry with them.

    The paper classifies by the nearest stored class; here the actor's columns of frozen units are frozen, and plastic
    units add to what the actor says. That they stay silent on old inputs, replay has to teach them:
    `strategy=[sharp, clear]`. (The paper replays hidden activations of early layers that are frozen; that saves memory
    and changes nothing else, and is not done.) With a head a task, `head` may be free. Biases belong to their units,
    the actor's own is free, and so is the critic. When no unit is plastic any more, only they learn.

    Args:
        density: share of connections.
        active: the smallest q.
        phases: p at which q has reached it.
        period: chunks of a phase.
        head: `frozen` or `free`: the actor's columns of frozen units.
    """

    needs_boundaries = True
    clock_option = ""

    def __init__(
        self,
        *,
        density: Annotated[float, Range(0.0, 1.0, above=True)] = 0.4,
        active: Annotated[float, Range(0.0, 1.0)] = 0.75,
        phases: Count = 30,
        period: Count = 25,
        head: Literal["frozen", "free"] = "frozen",
    ) -> None:
        choice("head of sharp", head, ("frozen", "free"))
        self.density, self.active, self.phases, self.period, self.head = density, active, phases, period, head
        self.chunks = self.phase = self.moved = 0

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.layers = layers_of(ctx.policy)
        self.age = {layer.name: torch.zeros(layer.size, dtype=torch.int64, device=ctx.device) for layer in self.layers}
        self.seen = {layer.name: torch.zeros(layer.size, device=ctx.device) for layer in self.layers}
        everything = dict(ctx.policy.named_parameters())
        #: parameter -> the layer whose units are its rows, and the layer whose units it reads
        self.rows: dict[str, tuple[Layer, Entries]] = {}
        self.columns: dict[str, tuple[Layer, Entries]] = {}
        for layer in self.layers:
            self.rows |= {part.parameter: (layer, part) for part in layer.incoming}
            self.columns |= {part.parameter: (layer, part) for part in layer.outgoing}
        self.parameters = {n: everything[n] for n in {**self.rows, **self.columns} if not n.startswith("critic")}
        elementwise = {f"{CELL}.{name}" for name in ctx.policy.cell.elementwise_parameters()}
        sparse = [name for name in self.rows if everything[name].dim() > 1 and name not in elementwise]
        self.alive: dict[str, Tensor] = {}  # connections of the matrices
        for name in sparse:
            draw = torch.rand(everything[name].shape, generator=self.generator).to(ctx.device)
            everyone = torch.ones_like(draw, dtype=torch.bool)
            self.alive[name] = largest(draw, everyone, max(1, round(self.density * draw.numel())))
        with torch.no_grad():
            for name, alive in self.alive.items():
                everything[name].mul_(alive).mul_(self.density**-0.5)  # the spread of what a unit hears
        self.look()

    # ---- who may move --------------------------------------------------------------------------------------------

    def marked(self, name: str, place: tuple[Layer, Entries], units: Mapping[str, Tensor]) -> Tensor:
        """Entries of a parameter that lie in the rows or columns of some units (layer -> bool [N])."""
        layer, part = place
        return spread(units[layer.name].to(self.parameters[name]), part, self.parameters[name]) > 0

    def look(self) -> None:
        """What may move now, by the ages."""
        frozen = {name: age > USED for name, age in self.age.items()}
        self.movable: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            movable = self.alive.get(name, torch.ones_like(parameter, dtype=torch.bool))
            if name in self.rows:
                movable = movable & ~self.marked(name, self.rows[name], frozen)
            elif self.head == "frozen":
                movable = movable & ~self.marked(name, self.columns[name], frozen)
            self.movable[name] = movable

    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        for name, movable in self.movable.items():
            if name in gradients:
                gradients[name].mul_(movable)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        for name, movable in self.movable.items():
            deltas[name].mul_(movable)

    # ---- phases --------------------------------------------------------------------------------------------------

    def share(self) -> float:
        """q of this phase."""
        return max(self.active, (1 + math.cos(math.pi * min(self.phase, self.phases) / self.phases)) / 2)

    @torch.no_grad()
    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        said = {name: h_MN.abs().mean(0) for name, h_MN in activations(ctx.policy, self.layers, experience).items()}
        ctx.workers.mean_(list(said.values()))
        for name, activity_N in said.items():
            self.seen[name] += activity_N
        self.chunks += 1
        if self.chunks < self.period:
            return
        for layer in self.layers:
            age = self.age[layer.name]
            used = smallest_set(self.seen[layer.name], self.share())
            self.age[layer.name] = torch.where(age > USED, age, used.to(age))
            self.seen[layer.name].zero_()
        self.chunks, self.phase = 0, self.phase + 1
        self.rewire(ctx)
        self.look()

    def rewire(self, ctx: Context) -> None:
        """Drop connections from plastic units to others, and let as many grow into plastic ones."""
        plastic = {name: age == PLASTIC for name, age in self.age.items()}
        fresh, entries = {}, {}
        for name, alive in self.alive.items():
            to_plastic = self.marked(name, self.rows[name], plastic)
            if name not in self.columns:  # what is seen is as it is
                continue
            drop = alive & self.marked(name, self.columns[name], plastic) & ~to_plastic
            candidates = ~alive & to_plastic
            count = min(int(drop.sum()), int(candidates.sum()))
            draw = torch.rand(alive.shape, generator=self.generator).to(alive.device)
            grow = largest(draw, candidates, count)
            self.alive[name] = (alive & ~drop) | grow
            self.moved += count
            fresh[name], entries[name] = torch.zeros_like(self.parameters[name]), drop | grow
        reinitialise(ctx, fresh, entries)

    # ---- tasks ---------------------------------------------------------------------------------------------------

    def on_task_end(self, ctx: Context, source: Source) -> None:
        for name, age in self.age.items():
            self.age[name] = torch.where(age > PLASTIC, age + 1, age)
        self.look()

    @torch.no_grad()
    def on_task_start(self, ctx: Context) -> Tensor | None:
        if ctx.segment == 0:
            return None
        self.chunks = self.phase = 0
        for seen in self.seen.values():
            seen.zero_()
        chosen = [(layer, (self.age[layer.name] == PLASTIC).nonzero().flatten()) for layer in self.layers]
        reset(ctx, [(layer, units) for layer, units in chosen if len(units)], self.generator)
        plastic = {name: age == PLASTIC for name, age in self.age.items()}
        for name, alive in self.alive.items():
            new = self.marked(name, self.rows[name], plastic)
            self.parameters[name].mul_(alive).mul_(torch.where(new, self.density**-0.5, 1.0))
        return chosen[-1][1]

    def report(self) -> dict[str, float]:
        """Share of every layer's units that are frozen and that the task uses; connections moved so far."""
        found = {"moved": float(self.moved)}
        for name, age in self.age.items():
            found[f"frozen/{name}"] = float((age > USED).float().mean())
            found[f"used/{name}"] = float((age == USED).float().mean())
        return found

    def state_dict(self) -> dict[str, Any]:
        counters = {"chunks": self.chunks, "phase": self.phase, "moved": self.moved}
        return {**super().state_dict(), **counters, "age": self.age, "seen": self.seen, "alive": self.alive}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.chunks, self.phase, self.moved = saved["chunks"], saved["phase"], saved["moved"]
        for kept in ("age", "seen"):
            here = getattr(self, kept)
            setattr(self, kept, {name: saved[kept][name].to(x, copy=True) for name, x in here.items()})
        self.alive = {name: grown(saved["alive"][name], mask) for name, mask in self.alive.items()}
        self.look()


def smallest_set(activity_N: Tensor, share: float) -> Tensor:
    """The fewest units that have so large a share of the summed activity, bool [N]."""
    sorted_N, order = activity_N.sort(descending=True)
    before = (sorted_N.cumsum(0) - sorted_N) / sorted_N.sum().clamp(min=1e-30)
    chosen = torch.zeros_like(activity_N, dtype=torch.bool)
    chosen[order] = (before < share) & (sorted_N > 0)
    return chosen
