"""Supervised learning on prediction tasks: the policy's output is the prediction, `info["target"]` the truth."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.modules.heads import Categorical, Distribution, Gaussian, MultiCategorical, TanhGaussian
from lifelong.agent.objectives.base import Metrics, Objective
from lifelong.agent.policy import Outputs
from lifelong.replay.chunk import Chunk


class Supervised(Objective):
    """Cross-entropy (Discrete; of MultiDiscrete the sum over its parts that have a target, which is not -1) or half the
    squared error of the mean (Box), averaged over the steps that have a target.

    Args:
        distribution: of the policy's actions.
    """

    off_policy: ClassVar[bool] = True
    says_error: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True

    def __init__(self, distribution: Distribution) -> None:
        super().__init__(distribution)
        if not isinstance(distribution, (Categorical, MultiCategorical, Gaussian)):
            raise ValueError("supervised needs a Discrete, MultiDiscrete or Box action space")
        if isinstance(distribution, TanhGaussian):
            raise ValueError("supervised predicts the target in its own unit; set policy.squash to none")

    def weight(self, chunk: Chunk) -> Tensor:
        return chunk.weight * chunk.target_mask.to(chunk.weight.dtype)

    def loss(self, outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        mean = self.mean(chunk)
        metrics = {}
        if isinstance(self.distribution, (Categorical, MultiCategorical)):
            error = -self.distribution.log_prob(outputs.policy, chunk.target)
            hit = (self.distribution.mode(outputs.policy) == chunk.target).to(mean.weight.dtype)
            if hit.dim() > 2:
                hit = hit.sum(-1) / (chunk.target >= 0).sum(-1).clamp(min=1)
            metrics["accuracy"] = mean(hit)
        else:
            prediction = self.distribution.mode(outputs.policy)
            error = 0.5 * (prediction - chunk.target).square().sum(-1)
        loss = mean(error)
        outputs.error = error
        with torch.no_grad():
            metrics["error"] = loss
        return loss, metrics
