"""Row by row."""

from __future__ import annotations

import torch


def sample(logits_MA: torch.Tensor, uniform_M: torch.Tensor) -> torch.Tensor:
    """See `kernels.categorical.categorical_sample`."""
    actions = []
    for logits_A, uniform in zip(logits_MA, uniform_M, strict=True):
        cumulative_A = torch.softmax(logits_A, -1).cumsum(-1)
        below = cumulative_A[:-1] <= uniform * cumulative_A[-1]
        actions.append(below.sum())
    return torch.stack(actions) if actions else torch.empty(0, dtype=torch.int64, device=logits_MA.device)


def log_prob_and_entropy(logits: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.categorical.categorical_log_prob`."""
    distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
    return distribution.log_prob(action), distribution.entropy()
