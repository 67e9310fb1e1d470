"""In torch operations, with the gradients written by hand."""

from __future__ import annotations

import torch


def loss(
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
) -> tuple[torch.Tensor, ...]:
    """(loss, statistics [7], and the loss's derivatives by log_prob, entropy and value)."""
    share = weight / total
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    free, held = ratio * advantage, clipped * advantage
    error = value - target
    rows = torch.stack([torch.minimum(free, held), error.square(), entropy, ratio - 1 - log_ratio, ratio != clipped])
    objective, squares, mean_entropy, kl, fraction = (rows.flatten(1) @ share.flatten()).unbind()
    statistics = torch.stack(
        [
            -objective,
            0.5 * squares,
            mean_entropy,
            1 - torch.var(error) / torch.var(target).clamp(min=1e-8),
            kl,
            fraction,
            (ratio - 1).abs().max(),
        ]
    )
    total_loss = -objective + 0.5 * value_weight * squares - entropy_weight * mean_entropy
    d_log_prob = torch.where(free <= held, -free * share, 0.0)
    return total_loss, statistics, d_log_prob, -entropy_weight * share, value_weight * share * error
