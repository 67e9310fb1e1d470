"""Nearest mean of classes: the head that is evaluated is made of the means of the features of every class.

Mensink et al. 2013, *Distance-Based Image Classification* (TPAMI 35, eq. 1); in continual learning Rebuffi et al. 2017
(iCaRL, section 3.1) and Janson et al. 2022, *A Simple Baseline that Questions the Use of Pretrained-Models in Continual
Learning* (arXiv 2210.04428).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.modules.heads import NEGATIVE, Categorical
from lifelong.agent.policy import Outputs
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import Share
from lifelong.replay.chunk import Chunk


class NMC(Strategy):
    """Keeps sums and counts of what the actor reads, y, of every class, and evaluates with the nearest mean:

        argmin_c |y - mu_c|^2 = argmax_c (2 mu_c y - |mu_c|^2),

    a linear layer, so it is written into the actor's weights while a task is evaluated and taken out again. The class
    of a step is its target; where there are none, as in control, the action that was taken. Training is untouched. Sums
    do not care about the order of tasks, so nothing is forgotten but by the features themselves: with `learn` false
    these stay what they were at the start, and the result is that of all data at once.

    Args:
        learn: whether the policy learns; false: features stay as they are.
        decay: of sums and counts, once a minibatch, where features move; 1: all steps count alike.
    """

    data_parallel: ClassVar[str] = "reduce"

    def __init__(self, *, learn: bool = True, decay: Share = 1.0) -> None:
        self.learn, self.decay = learn, decay
        self.right: Tensor | None = None  # share of the last minibatch that is nearest to its class

    def setup(self, ctx: Context, seed: int) -> None:
        if type(ctx.policy.distribution) is not Categorical:
            raise ValueError("it has a mean for every class, so it needs Discrete actions and an actor of their logits")
        if ctx.policy.composed:
            raise ValueError("it writes the actor's rows, and an actor that composes policies has none a class")
        classes, size = ctx.policy.distribution.size, ctx.policy.cell.output_size
        self.sums = torch.zeros(classes, size, dtype=torch.float64, device=ctx.device)
        self.counts = torch.zeros(classes, dtype=torch.float64, device=ctx.device)

    def head(self) -> tuple[Tensor, Tensor]:
        """Weights [C, H] and biases [C] of the nearest mean; a class that was never seen is never chosen."""
        mean_CH = self.sums / self.counts.clamp(min=1e-12).unsqueeze(1)
        return 2 * mean_CH, torch.where(self.counts > 0, -mean_CH.square().sum(1), NEGATIVE)

    @torch.no_grad()
    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        assert outputs.features is not None  # of a whole chunk they are there
        targets = ctx.objective.needs_target
        label_TB = (chunk.target if targets else chunk.action)[:, :live]
        weight_TB = chunk.weight * chunk.target_mask if targets else chunk.weight
        counts = weight_TB[:, :live].flatten() > 0
        y_MH = outputs.features[:, :live].flatten(0, 1)[counts].double()
        label_M = label_TB.flatten()[counts].long()
        weights, biases = self.head()
        right = ((y_MH @ weights.T + biases).argmax(1) == label_M).double().sum()
        sums = torch.zeros_like(self.sums).index_add_(0, label_M, y_MH)
        number = torch.bincount(label_M, minlength=len(self.counts)).to(self.counts)
        ctx.workers.sum_([sums, number, right])
        self.right = right / number.sum().clamp(min=1.0)
        self.sums, self.counts = self.decay * self.sums + sums, self.decay * self.counts + number
        return None

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        if not self.learn:
            for delta in deltas.values():
                delta.zero_()

    @contextmanager
    def evaluation_view(self, ctx: Context, task: int) -> Iterator[None]:
        linear, heads = ctx.policy.actor.linear, ctx.policy.actor.tasks
        trained = [parameter.detach().clone() for parameter in (linear.weight, linear.bias)]
        weights, biases = self.head()
        with torch.no_grad():
            linear.weight.copy_(weights.repeat(heads, 1))
            linear.bias.copy_(biases.repeat(heads))
        try:
            yield
        finally:
            with torch.no_grad():
                linear.weight.copy_(trained[0])
                linear.bias.copy_(trained[1])

    def report(self) -> dict[str, float]:
        found = {"classes": float((self.counts > 0).sum())}
        return found if self.right is None else {**found, "accuracy": float(self.right)}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts, "right": self.right}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.sums, self.counts = saved["sums"].to(self.sums.device), saved["counts"].to(self.counts.device)
        self.right = saved["right"]
