"""As it is written in the paper."""

from __future__ import annotations

import torch


def differentiable_loss(
    log_prob: torch.Tensor,
    entropy: torch.Tensor,
    value: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    clip: float,
    value_weight: float,
    entropy_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.ppo_loss.ppo_loss`."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return (x * weight).sum() / total

    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    policy_loss = -mean(torch.minimum(ratio * advantage, clipped * advantage))
    value_loss = 0.5 * mean((value - target).square())
    mean_entropy = mean(entropy)
    loss = policy_loss + value_weight * value_loss - entropy_weight * mean_entropy
    statistics = (
        policy_loss,
        value_loss,
        mean_entropy,
        1 - torch.var(value - target) / torch.var(target).clamp(min=1e-8),
        mean(ratio - 1 - log_ratio),
        mean((ratio != clipped).to(ratio.dtype)),
        (ratio - 1).abs().max(),
    )
    return loss, torch.stack(statistics).detach()
