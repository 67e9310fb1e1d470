"""What an optimiser keeps for every entry of a parameter: momentum, mean squares."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimiser's tensors that have an entry for every entry of the parameter; none before its first step.

    What it keeps once for a whole tensor, such as Adam's count of steps, is not among them.
    """
    state = optimizer.state.get(parameter, {})
    return {name: x for name, x in state.items() if isinstance(x, Tensor) and x.shape == parameter.shape}
