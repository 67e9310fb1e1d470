"""MAS: memory-aware synapses, importance as how much a parameter moves the outputs.

Aljundi et al. 2018 (arXiv 1711.09601, eqs. 2-4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lifelong.agent.policy import Outputs, Policy
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.consolidation import SequenceImportance, sequence_gradients
from lifelong.envs.options import Weight
from lifelong.replay.chunk import Chunk


def sensitivity(
    policy: Policy,
    chunk: Chunk,
    names: list[str],
    value_weight: Weight = 0.0,
    *,
    weight: Tensor | None = None,
    start: Callable[[int], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Sum over the sequences of |gradient of sum_t |f_t|^2|, f_t the distribution parameters of step t.

    Args:
        policy: whose.
        chunk: the histories.
        names: of the parameters.
        value_weight: w; f_t has sqrt(w) times the value as one entry more.
        weight: see `sequence_gradients`.
        start: see `sequence_gradients`.

    Returns:
        name -> tensor of the parameter's shape.
    """

    def score(outputs: Outputs, counts: Tensor) -> Tensor:
        return ((outputs.policy.square().sum(-1) + value_weight * outputs.value.square()) * counts).sum()

    parameters = dict(policy.named_parameters())
    total = {name: torch.zeros_like(parameters[name]) for name in names}
    for gradients in sequence_gradients(policy, chunk, names, score, weight, start):
        for name, gradient in gradients.items():
            total[name] += gradient.abs()
    return total


class MAS(SequenceImportance):
    """The importance is the mean over sequences of |gradient of the squared norm of the outputs|, a step.

    The sum over a sequence's steps stands inside, the absolute value outside. Neither rewards nor actions are looked
    at; `value_weight` is that of the squared value among the outputs. Under `rtrl` the gradient has the whole history.
    `strength` is twice the paper's lambda. The options are those of `SequenceImportance`.
    """

    def measure(
        self, ctx: Context, chunk: Chunk, weight_TB: Tensor, start: Callable[[int], Tensor]
    ) -> dict[str, Tensor]:
        return sensitivity(ctx.policy, chunk, list(self.parameters), self.value_weight, weight=weight_TB, start=start)
