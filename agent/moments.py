"""What an optimiser keeps for every entry of a parameter: momentum, mean squares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: what is kept of an entry that is a place among the parameters, not a moment of gradients
PLACES = frozenset({"average", "z"})


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimiser's tensors that have an entry for every entry of the parameter; none before its first step.

    What it keeps once for a whole tensor, such as Adam's count of steps, is not among them.
    """
    state = optimizer.state.get(parameter, {})
    return {name: x for name, x in state.items() if isinstance(x, Tensor) and x.shape == parameter.shape}


def beginning(name: str, parameter: Tensor) -> Tensor:
    """What an optimiser keeps under `name` of a parameter of which it has seen nothing yet: zeros, or its value."""
    return parameter.detach().clone() if name in PLACES else torch.zeros_like(parameter)
