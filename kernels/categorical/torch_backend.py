"""All rows at once."""

from __future__ import annotations

import torch


def sample(logits_MA: torch.Tensor, uniform_M: torch.Tensor) -> torch.Tensor:
    """See `kernels.categorical.categorical_sample`."""
    cumulative_MA = torch.softmax(logits_MA, -1).cumsum(-1)
    threshold_M1 = (uniform_M * cumulative_MA[:, -1]).unsqueeze(-1)
    return (cumulative_MA[:, :-1] <= threshold_M1).sum(-1)


def log_prob(logits: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probability, entropy, [...] each, logarithm of all probabilities [..., A])."""
    log_p = torch.log_softmax(logits, -1)
    entropy = -_weighted(log_p).sum(-1)
    return log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1), entropy, log_p


def log_prob_backward(
    logits: torch.Tensor,
    action: torch.Tensor,
    entropy: torch.Tensor,
    log_p: torch.Tensor,
    d_log_prob: torch.Tensor,
    d_entropy: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the logits."""
    p = log_p.exp()
    pull = torch.addcmul(_weighted(log_p), p, entropy.unsqueeze(-1))
    d = torch.addcmul(p * d_log_prob.unsqueeze(-1), pull, d_entropy.unsqueeze(-1)).neg_()
    return d.scatter_add_(-1, action.unsqueeze(-1), d_log_prob.unsqueeze(-1))


def _weighted(log_p: torch.Tensor) -> torch.Tensor:
    """p log p, 0 where p is."""
    p = log_p.exp()
    return torch.where(p > 0, p * log_p, 0.0)
