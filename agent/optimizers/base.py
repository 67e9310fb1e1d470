"""Optimisers that evaluate an average of where they were, and how an optimiser is made from a config."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lifelong.agent import registry
from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Strategy, overrides

#: hooks that change parameters, or show others, without the optimiser
_BESIDE = ("transform_update", "after_update", "evaluation_view")


class Averaging(torch.optim.Optimizer):
    """Base of optimisers that keep an average of the parameters, which is what is evaluated.

    The average and what it is made from are counted on the host, so no step can become a part of a CUDA graph.
    """

    @abstractmethod
    def averages(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Parameters and their averages; a parameter that has none yet is left out."""

    @contextmanager
    def evaluation_view(self) -> Iterator[None]:
        """The parameters are their averages, and afterwards bit for bit what they were."""
        with torch.no_grad():
            kept = [(parameter, parameter.clone(), average) for parameter, average in self.averages()]
            for parameter, _, average in kept:
                parameter.copy_(average)
            try:
                yield
            finally:
                for parameter, value, _ in kept:
                    parameter.copy_(value)

    def look(self, segment: int, performance: float) -> None:
        """Told of every evaluation: the segment, 0 if it is not known, and the mean performance over all tasks."""


def build_optimizer(config: Config, policy: Policy) -> torch.optim.Optimizer:
    """The optimiser over all parameters, in one fused kernel a step where torch has one; on a GPU it counts its steps
    there, so that they can be captured."""
    kind = config.optimizer["kind"]
    fused = {"fused": True} if kind in ("adam", "adamw", "sgd") else {}
    known = registry.options_of(registry.load("optimizer", kind))
    ours = {"capturable": next(policy.parameters()).is_cuda, "differentiable": False}  # no choice of a config
    context = {name: value for name, value in ours.items() if name in known}
    spec = {**fused, **config.optimizer}
    optimizer: torch.optim.Optimizer = registry.build("optimizer", spec, policy.parameters(), **context)
    return optimizer


def check_optimizer(config: Config, optimizer: torch.optim.Optimizer, strategies: Sequence[Strategy]) -> None:
    """Refuse an average of parameters beside a strategy that moves or replaces them without the optimiser."""
    if not isinstance(optimizer, Averaging):
        return
    for strategy, spec in zip(strategies, config.strategy, strict=True):
        if any(overrides([strategy], hook) for hook in _BESIDE):
            raise ConfigError(
                f"optimizer {config.optimizer['kind']} averages where its own steps lead, and strategy {spec['kind']} "
                "moves or replaces parameters beside them; use optimizer adam or sgd"
            )
