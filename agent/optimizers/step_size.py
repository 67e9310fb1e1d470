"""Step-size rules: how far a streaming objective may go along its traces."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lifelong.agent.parallel import Workers


@dataclass
class Streamed:
    """What a streaming objective makes its step of, R rows: sum_r share_r error_r trace_r.

    Args:
        error_R: delta.
        share_R: of the mean over the copies.
        trace_RP: z, after the gradient of this step was added.
        slope_RP: that gradient.
        decay: gamma lambda, the largest if there are several.
        parameters: whose P numbers these are.
    """

    error_R: Tensor
    share_R: Tensor
    trace_RP: Tensor
    slope_RP: Tensor
    decay: float
    parameters: Sequence[nn.Parameter]

    def split(self, flat_P: Tensor) -> list[Tensor]:
        """A vector as tensors of the parameters' shapes."""
        parts = flat_P.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as a vector."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])


class StepSize(torch.optim.Optimizer):
    """Base of step-size rules: optimisers that are shown what a streaming objective makes its step of.

    `step` gets minus the sum of the rows, each times its scale, as gradients, after strategies have changed them.
    """

    @abstractmethod
    def scales(self, streamed: Streamed, workers: Workers) -> Tensor:
        """How much of each row's step is asked for, [R]."""
