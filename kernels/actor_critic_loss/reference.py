"""As it is written in the paper."""

from __future__ import annotations

import torch
from torch import Tensor


def differentiable_loss(
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    advantage: Tensor,
    target: Tensor,
    weight: Tensor,
    total: Tensor,
    value_weight: float,
    entropy_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.actor_critic_loss.actor_critic_loss`."""

    def mean(x: Tensor) -> Tensor:
        return (x * weight).sum() / total

    error = value - target
    policy_loss, value_loss, mean_entropy = -mean(log_prob * advantage), 0.5 * mean(error.square()), mean(entropy)
    loss = policy_loss + value_weight * value_loss - entropy_weight * mean_entropy
    explained = 1 - torch.var(error) / torch.var(target).clamp(min=1e-8)
    return loss, torch.stack([policy_loss, value_loss, mean_entropy, explained]).detach(), error
