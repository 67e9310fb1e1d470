"""All rows at once."""

from __future__ import annotations

import torch


def sample(logits_MA: torch.Tensor, uniform_M: torch.Tensor) -> torch.Tensor:
    """See `kernels.categorical.categorical_sample`."""
    cumulative_MA = torch.softmax(logits_MA, -1).cumsum(-1)
    threshold_M1 = (uniform_M * cumulative_MA[:, -1]).unsqueeze(-1)
    return (cumulative_MA[:, :-1] <= threshold_M1).sum(-1)
