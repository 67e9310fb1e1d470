"""Averaged SGD that begins to average when learning stalls.

Merity, Keskar & Socher 2018, *Regularizing and Optimizing LSTM Language Models* (ICLR, arXiv 1708.02182), section 4 and
algorithm 1; the average is that of Polyak & Juditsky 1992.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lifelong.agent.optimizers.base import Averaging
from lifelong.envs.options import Count, Range, Weight


class NTASGD(Averaging):
    """p' = p - lr (g + weight_decay p); once averaging has begun, the mean of all p' since is what is evaluated.

    It begins after an evaluation whose mean performance is below the best of all but the last `patience` ones: the
    paper's validation loss, with its sign turned. Where the stream gives boundaries, or a detector finds them, what was
    seen and averaged is forgotten at each.

    Args:
        params: the parameters.
        lr: learning rate.
        weight_decay: L2 penalty.
        patience: the paper's n, in evaluations.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: Annotated[float, Range(0.0, 1e3)] = 1.0,
        weight_decay: Weight = 0.0,
        patience: Count = 5,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "patience": patience}
        super().__init__(params, {**defaults, "averaging": False, "averaged": 0, "seen": [], "segment": 0})

    def averages(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["averaged"] and "average" in self.state.get(parameter, {}):
                    yield parameter, self.state[parameter]["average"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step, and what it adds to the average."""
        for group in self.param_groups:
            group["averaged"] += group["averaging"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * (parameter.grad + group["weight_decay"] * parameter))
                if group["averaging"]:
                    average = self.state[parameter].setdefault("average", parameter.clone())
                    average.add_(parameter - average, alpha=1 / group["averaged"])

    def look(self, segment: int, performance: float) -> None:
        for group in self.param_groups:
            if segment != group["segment"]:
                group.update(averaging=False, averaged=0, seen=[], segment=segment)
                for state in self.state.values():
                    state.pop("average", None)
            before = group["seen"][: -group["patience"]]
            group["averaging"] = group["averaging"] or (bool(before) and performance < max(before))
            group["seen"] = [*group["seen"], performance]
