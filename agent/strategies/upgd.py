"""UPGD: utility-based perturbed gradient descent.

Elsayed & Mahmood 2024, *Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning* (ICLR,
algorithms 1 and 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.initial import weights_of
from lifelong.agent.strategies.units import Entries, layers_of, spread
from lifelong.envs.options import Range, Weight


class UPGD(Strategy):
    """Scales the step of every weight by how useless the weight is, and perturbs it by as much.

        u_i <- decay u_i - (1 - decay) g_i theta_i        delta_i <- 2 (1 - sigmoid(u_i / max_j u_j)) (delta_i + noise)

    u is the first-order utility: by how much the loss would rise without the weight; it is used without the bias of its
    start. delta is the step that the optimiser makes, whichever it is, and the noise is lr * sigma * N(0, 1). The
    factor 2, which the authors' program has, lets a weight of no utility move as it would without this strategy; the
    most useful one moves 0.54 times as far, a harmful one up to twice. Weight decay of the optimiser is part of delta.

    Under `rtrl` g has the whole history behind it, and so has the utility of a recurrent weight. Memory and carry stay,
    as after any step of the optimiser. What sets how long a unit remembers (biases and element-wise weights of the
    cell) is not perturbed: a random walk of time constants is what the paper's feed-forward networks do not have. Its
    steps are scaled like all others.

    Args:
        sigma: size of the noise; with Adam relative to the size of its steps, with SGD to the gradient.
        decay: of the running mean of the utility.
        per: a utility for every `weight`, or for every `unit`: the sum over the weights that read it, which scales the
            steps of all that it hears; weights into actor and critic then are left alone.
        recurrence: perturb also what sets how long a unit remembers.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(
        self,
        *,
        sigma: Weight = 1e-3,
        decay: Annotated[float, Range(0.0, 1.0 - 1e-9)] = 0.999,
        per: Literal["weight", "unit"] = "weight",
        recurrence: bool = False,
    ) -> None:
        self.sigma, self.decay, self.per, self.recurrence = sigma, decay, per, recurrence
        self.updates = 0
        self.largest: Tensor | None = None
        self.gate: Tensor | None = None

    def setup(self, ctx: Context, seed: int) -> None:
        self.generator = torch.Generator(ctx.device).manual_seed(seed)
        self.utility = {name: torch.zeros_like(p) for name, p in ctx.policy.named_parameters()}
        self.perturbed = set(weights_of(ctx.policy, self.recurrence))
        self.layers = layers_of(ctx.policy) if self.per == "unit" else []

    @torch.no_grad()
    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        self.updates += 1
        for name, parameter in ctx.policy.named_parameters():
            self.utility[name].mul_(self.decay)
            if name in gradients:
                self.utility[name].addcmul_(gradients[name], parameter, value=self.decay - 1)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        scaled = self.scaled()
        lr = float(ctx.optimizer.param_groups[0]["lr"])
        weights, total = 0, torch.zeros((), device=ctx.device)
        for name, delta in deltas.items():
            if self.sigma and name in self.perturbed:
                noise = torch.empty_like(delta).normal_(generator=self.generator)
                delta.add_(noise, alpha=lr * self.sigma)
            if name in scaled:
                gate = 2 * torch.sigmoid(-scaled[name])
                delta.mul_(gate)
                weights, total = weights + gate.numel(), total + gate.sum()
        self.gate = total / max(1, weights)

    def scaled(self) -> dict[str, Tensor]:
        """The utility of what every entry of a parameter belongs to, relative to the largest: name -> tensor."""
        correction = 1 - self.decay**self.updates
        if self.per == "weight":
            self.largest = torch.stack([u.max() for u in self.utility.values()]).max() / correction
            return {name: u / correction / self.largest.clamp(min=1e-30) for name, u in self.utility.items()}
        worth = {layer.name: sum(self.of_units(part) for part in layer.outgoing) for layer in self.layers}
        self.largest = torch.stack([u.max() for u in worth.values()]).max() / correction  # type: ignore[union-attr]
        found: dict[str, Tensor] = {}
        for layer in self.layers:
            relative_N = worth[layer.name] / correction / self.largest.clamp(min=1e-30)
            for part in layer.incoming:
                found[part.parameter] = spread(relative_N, part, self.utility[part.parameter])
        return found

    def of_units(self, part: Entries) -> Tensor:
        """The utility of the entries of every unit, summed up [N]."""
        return self.utility[part.parameter].movedim(part.dim, 0).flatten(1).sum(1)[part.index].sum(1)

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        for name, mask in entries.items():
            self.utility[name].masked_fill_(mask, 0.0)

    def report(self) -> dict[str, float]:
        """The mean factor of the steps, and the largest utility."""
        if self.gate is None or self.largest is None:
            return {}
        return {"gate": float(self.gate), "largest_utility": float(self.largest)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "utility": self.utility,
            "updates": self.updates,
            "largest": self.largest,
            "gate": self.gate,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.generator.set_state(saved["generator"])
        self.utility = {n: grown(u, torch.zeros_like(self.utility[n])) for n, u in saved["utility"].items()}
        self.updates, self.largest, self.gate = saved["updates"], saved["largest"], saved["gate"]
