"""Re-basin: a network merged with itself in another order of its units, which is learned.

Guerrero-Peña, Medeiros, Dubail, Aminbeidokhti, Granger & Pedersoli 2023, *Re-basin via implicit Sinkhorn
differentiation* (CVPR; arXiv 2212.12042), section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.modules.permutations import assignment, sinkhorn
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating
from lifelong.agent.strategies.units import Layer, layers_of
from lifelong.envs.options import Range, Share, Steps

#: spread of the scores around those of the identity
SPREAD = 0.1


def permuted(values: Mapping[str, Tensor], layers: list[Layer], orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters with the units of every layer in another order: row i of an order [N, N] says of which old units the
    new unit i is made. A unit takes the rows of all its gates along, its biases and element-wise weights, and the
    columns of all that reads it; with permutations the policy is the same function of its inputs and of a memory whose
    parts are in the new order, too."""
    found = dict(values)
    for layer in layers:
        for part in (*layer.incoming, *layer.outgoing):
            if part.parameter in found:
                value = found[part.parameter].movedim(part.dim, 0)
                moved = torch.einsum("ij,j...->i...", orders[layer.name], value[part.index])
                value = value.index_copy(0, part.index.flatten(), moved.flatten(0, 1))
                found[part.parameter] = value.movedim(0, part.dim)
    return found


class Rebasin(Consolidating):
    """While a further task is learned the parameters are

        theta = (theta_0 + pi_X(theta_0)) / 2 + delta

    theta_0 are those of the last boundary, pi_X puts the units of every layer into the order P = Sinkhorn(X), which is
    learned through the gradient of theta, and delta is what the optimiser of the config moves; it is drawn towards
    zero. At the boundary

        theta_0 <- share theta_0 + (1 - share) pi(theta_0) + delta

    with pi the permutation nearest to P. The paper learns delta by clipped SGD and on replayed examples, too: that is
    `strategy=[rebasin, er]`. Scores begin at the identity; the paper's temperature of 1 makes P nearly uniform there,
    which takes half of the old network away at once, so it is colder here.

    All is expressed in the order of theta_0, in which the policy lives, so memory, carry and what others keep need not
    be put into another one; theta moves by constants, and the carry is that of theta.

    Args:
        share: alpha.
        temperature: of Sinkhorn.
        lr: of the scores' AdamW.
        decay: share of delta that goes with every update.
        every: begin anew every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(
        self,
        *,
        share: Share = 0.8,
        temperature: Annotated[float, Range(0.0, 1e3, above=True)] = 0.1,
        lr: Annotated[float, Range(0.0, 1e3)] = 0.1,
        decay: Share = 0.005,
        every: Steps = 0,
    ) -> None:
        super().__init__(every)
        self.share, self.temperature, self.lr, self.decay = share, temperature, lr, decay
        self.origin: dict[str, Tensor] = {}  # theta_0; empty before the first boundary
        self.mixed: dict[str, Tensor] = {}  # theta without delta
        self.scores: dict[str, Tensor] = {}
        self.moved = 0.0  # share of units that the last merge put elsewhere

    def setup(self, ctx: Context, seed: int) -> None:
        self.layers, self.generator = layers_of(ctx.policy), torch.Generator().manual_seed(seed)
        if not ctx.policy.cell.interchangeable:
            raise ValueError("rebasin puts units into another order, but the units of this cell share keys by heads")
        self.parameters = dict(ctx.policy.named_parameters())

    def orders(self) -> dict[str, Tensor]:
        """P of every layer."""
        return {name: sinkhorn(score, self.temperature) for name, score in self.scores.items()}

    def mixture(self, orders: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """share theta_0 + (1 - share) pi(theta_0)."""
        other = permuted(self.origin, self.layers, orders)
        return {name: torch.lerp(other[name], value, share) for name, value in self.origin.items()}

    @torch.no_grad()
    def consolidate(self, ctx: Context, source: Source) -> None:
        """Merge, and begin anew from there."""
        if self.origin:
            chosen = {name: assignment(p) for name, p in self.orders().items()}
            hard = {name: torch.eye(len(c)).to(self.scores[name])[c] for name, c in chosen.items()}
            self.shift(self.mixture(hard, self.share))
            units = sum(map(len, chosen.values()))
            kept = sum(int((c == torch.arange(len(c), device=c.device)).sum()) for c in chosen.values())
            self.moved = 1.0 - kept / units
        self.origin = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        for layer in self.layers:
            noise = SPREAD * torch.randn(layer.size, layer.size, generator=self.generator)
            score = (torch.eye(layer.size) + noise).to(ctx.policy.critic.weight)
            self.scores[layer.name] = score.requires_grad_()
        self.optimizer = self.adam()
        self.mixed = self.origin
        self.shift(self.mixture(self.orders(), 0.5))

    def adam(self) -> torch.optim.Optimizer:
        """That of the scores."""
        scores = list(self.scores.values())
        return torch.optim.AdamW(scores, self.lr, capturable=bool(scores) and scores[0].is_cuda)

    def shift(self, mixed: dict[str, Tensor]) -> None:
        """delta on another mixture."""
        for name, parameter in self.parameters.items():
            parameter.add_(mixed[name] - self.mixed[name])
        self.mixed = mixed

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        if not self.origin:
            return
        with torch.enable_grad():
            mixed = self.mixture(self.orders(), 0.5)
            terms = [(mixed[n] * p.grad).sum() for n, p in self.parameters.items() if p.grad is not None]
            self.optimizer.zero_grad()
            torch.stack(terms).sum().backward()
        self.optimizer.step()
        mixed = self.mixture(self.orders(), 0.5)
        for name, parameter in self.parameters.items():  # the optimiser has made its step already
            drawn = parameter - deltas[name] - self.mixed[name]
            deltas[name].add_(mixed[name] - self.mixed[name]).sub_(drawn, alpha=self.decay)
        self.mixed = {name: value.detach() for name, value in mixed.items()}

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """What has begun anew is its own old network."""
        for name in entries.keys() & self.origin.keys():
            for kept in (self.origin, self.mixed):
                kept[name] = torch.where(entries[name], self.parameters[name].detach(), kept[name])

    def report(self) -> dict[str, float]:
        """Of the orders: mean of their diagonals; share of units that the last merge moved."""
        found = {"moved": self.moved}
        if self.scores:
            with torch.no_grad():
                diagonals = torch.cat([p.diagonal() for p in self.orders().values()])
            found["diagonal"] = float(diagonals.mean())
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "origin": self.origin,
            "mixed": self.mixed,
            "scores": {name: score.detach() for name, score in self.scores.items()},
            "adam": self.optimizer.state_dict() if self.scores else None,
            "generator": self.generator.get_state(),
            "moved": self.moved,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.origin, self.mixed = (
            {name: grown(value, self.parameters[name].detach()) for name, value in saved[kept].items()}
            for kept in ("origin", "mixed")
        )
        like = next(iter(self.parameters.values()))
        self.scores = {name: x.to(like.device, copy=True).requires_grad_() for name, x in saved["scores"].items()}
        if self.scores:
            self.optimizer = self.adam()
            self.optimizer.load_state_dict(saved["adam"])
        self.generator.set_state(saved["generator"].cpu())
        self.moved = saved["moved"]
