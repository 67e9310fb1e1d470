"""MAS: memory-aware synapses, importance as how much a parameter moves the outputs.

Aljundi et al. 2018 (arXiv 1711.09601, eqs. 2-4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lifelong.agent.policy import Outputs, Policy
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.consolidation import Normalize, SequenceImportance, Tasks, sequence_gradients
from lifelong.envs.options import Count, Share, Steps, Weight
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
    """Adds strength/2 * sum_i I_i (theta_i - anchor_i)^2 to the loss.

    At every boundary (or every `every` steps) I <- decay * I + I_new. I_new is the mean over sequences of whole
    episodes of |gradient of the squared norm of the outputs|, a step: the sum over a sequence's steps stands inside,
    the absolute value outside. Neither rewards nor actions are looked at. Under `rtrl` the gradient has the whole
    history.

    Args:
        strength: twice the paper's lambda.
        decay: of what was there before; 1 keeps all tasks alike.
        sequences: sequences that the importance is estimated from, at least; every copy gives equally many.
        normalize: `all`, `tensor` or `none`: see `ewc`.
        tasks: whether I is the `sum` over the tasks or the `mean`.
        value_weight: of the squared value among the outputs; 0 leaves the critic free.
        every: consolidate every so many steps instead of at boundaries; 0: at boundaries.
    """

    def __init__(
        self,
        *,
        strength: Weight = 1.0,
        decay: Share = 1.0,
        sequences: Count = 256,
        normalize: Normalize = "all",
        tasks: Tasks = "sum",
        value_weight: Weight = 0.0,
        every: Steps = 0,
    ) -> None:
        super().__init__(
            sequences,
            strength=strength,
            critic=value_weight > 0,
            every=every,
            decay=decay,
            normalize=normalize,
            tasks=tasks,
        )
        self.value_weight = value_weight

    def measure(
        self, ctx: Context, chunk: Chunk, weight_TB: Tensor, start: Callable[[int], Tensor]
    ) -> dict[str, Tensor]:
        return sensitivity(ctx.policy, chunk, list(self.parameters), self.value_weight, weight=weight_TB, start=start)
