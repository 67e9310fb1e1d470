"""The linear maps of a policy, and what strategies share that keep their singular values in order."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.policy import Outputs, Policy
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.replay.chunk import Chunk


def matrices_of(policy: Policy, heads: bool) -> dict[str, tuple[nn.Parameter, int]]:
    """The weight matrices of a policy: name -> (parameter, number of maps in it, one above the other).

    Every gate of a cell is a map of its own, and so is the head of every task; a convolution is that of its patches.
    Biases and the element-wise weights of a cell, which set how long a unit remembers, are no matrices.

    Args:
        policy: whose.
        heads: actor and critic, too.
    """
    elementwise = {f"cell.{name}" for name in policy.cell.elementwise_parameters()}
    rows = {id(parameter): tasks for parameter, tasks in policy.task_heads()}
    found: dict[str, tuple[nn.Parameter, int]] = {}
    for name, parameter in policy.named_parameters():
        part = name.partition(".")[0]
        if parameter.dim() < 2 or name in elementwise or (part in ("actor", "critic") and not heads):
            continue
        gates = policy.cell.maps(name.removeprefix("cell.")) if part == "cell" else 1
        found[name] = parameter, rows.get(id(parameter), gates)
    return found


def blocks_of(parameter: Tensor, count: int) -> Tensor:
    """The maps [G, m, n] of a parameter."""
    return parameter.flatten(1).unflatten(0, (count, -1))


class MatrixPenalty(Strategy):
    """Base of those that add strength times a penalty on every weight matrix to the loss.

    Args:
        strength: of the penalty.
        heads: whether actor and critic are among them.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(self, strength: float, heads: bool) -> None:
        self.strength, self.heads = strength, heads
        self.penalty: Tensor | None = None

    def setup(self, ctx: Context, seed: int) -> None:
        self.matrices = matrices_of(ctx.policy, self.heads)

    def penalty_of(self, name: str, weight_Gmn: Tensor) -> Tensor:
        """The penalty of every map of a parameter, [G]."""
        raise NotImplementedError

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        terms = [self.penalty_of(name, blocks_of(p, count)).sum() for name, (p, count) in self.matrices.items()]
        penalty = self.strength * torch.stack(terms).sum()
        self.penalty = penalty.detach()
        return penalty

    def report(self) -> dict[str, float]:
        return {} if self.penalty is None else {"penalty": float(self.penalty)}

    def state_dict(self) -> dict[str, object]:
        return {**super().state_dict(), "penalty": self.penalty}

    def load_state_dict(self, saved: dict[str, object]) -> None:
        super().load_state_dict(saved)
        self.penalty = saved["penalty"]  # type: ignore[assignment]
