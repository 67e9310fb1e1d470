"""Online EWC: elastic weight consolidation with one running Fisher and the last anchor.

Kirkpatrick et al. 2017 (PNAS, eq. 3); online form: Schwarz et al. 2018 (Progress & Compress, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.policy import Outputs, Policy
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import SequenceImportance, sequence_gradients
from lifelong.envs.options import Weight
from lifelong.replay.chunk import Chunk


def fisher_diagonal(
    policy: Policy,
    chunk: Chunk,
    generator: torch.Generator,
    names: list[str],
    value_weight: Weight = 0.0,
    *,
    weight: Tensor | None = None,
    start: Callable[[int], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of the policy's actions, summed over the steps of `chunk` that count.

    One sample is one copy's sequence: the gradient of sum_t log pi(a_t | history), with actions drawn from the policy
    itself, squared; the cross terms between steps have mean zero. With `value_weight` w the critic counts as a Gaussian
    of precision w around its value.

    Args:
        policy: whose.
        chunk: the histories.
        generator: of the actions.
        names: of the parameters.
        value_weight: w.
        weight: see `sequence_gradients`.
        start: see `sequence_gradients`.

    Returns:
        name -> tensor of the parameter's shape.
    """

    def score(outputs: Outputs, counts: Tensor) -> Tensor:
        action = policy.distribution.sample(outputs.policy.detach(), generator)
        total = (policy.distribution.log_prob(outputs.policy, action) * counts).sum()
        if value_weight:
            noise = torch.randn(outputs.value.shape, generator=generator, device=outputs.value.device)
            total = total + value_weight**0.5 * (outputs.value * noise * counts).sum()
        return total

    parameters = dict(policy.named_parameters())
    fisher = {name: torch.zeros_like(parameters[name]) for name in names}
    for gradients in sequence_gradients(policy, chunk, names, score, weight, start):
        for name, gradient in gradients.items():
            fisher[name] += gradient.square()
    return fisher


class EWC(SequenceImportance):
    """The importance is the diagonal of the Fisher information of the policy's actions (see `fisher_diagonal`).

    Args:
        strength: lambda.
        options: see `SequenceImportance`.
    """

    def __init__(self, *, strength: Weight = 100.0, **options: Any) -> None:
        super().__init__(strength=strength, **options)

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.seed, self.generator = seed, torch.Generator(device=ctx.device).manual_seed(seed)

    def consolidate(self, ctx: Context, source: Source) -> None:
        # every worker draws its own actions, and what is saved stays equal on all: rank 0's generator
        self.drawing = self.generator
        if ctx.workers.rank:
            seed = self.seed + 1_000_003 * ctx.workers.rank + ctx.step
            self.drawing = torch.Generator(device=ctx.device).manual_seed(seed)
        super().consolidate(ctx, source)

    def measure(
        self, ctx: Context, chunk: Chunk, weight_TB: Tensor, start: Callable[[int], Tensor]
    ) -> dict[str, Tensor]:
        names, value_weight = list(self.parameters), self.value_weight
        return fisher_diagonal(ctx.policy, chunk, self.drawing, names, value_weight, weight=weight_TB, start=start)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.generator.set_state(saved["generator"].cpu())
