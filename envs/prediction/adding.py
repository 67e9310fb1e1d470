"""Adding: the sum of the two numbers that were marked.

Source: Hochreiter & Schmidhuber (1997), "Long short-term memory", experiment 4, in the form of Le, Jaitly & Hinton
(2015, arXiv 1504.00941), section 4.1: numbers from 0 to 1, one of them marked in either half, answered at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param


@dataclass(frozen=True)
class AddingState:
    """`value` float32 [B]; `total` float32 [B]: of what was marked before; `first`, `second`, `step` int64 [B]."""

    value: Tensor
    total: Tensor
    first: Tensor
    second: Tensor
    step: Tensor


class Adding(BatchedEnv):
    """Adding with a length for every copy.

    Observation: float32 [B, 2], a number from 0 to 1, drawn afresh at every step, and 1 if it is marked, else 0. One is
    marked in the first half of the `length` steps and one in the second. The action [B, 1] of the last step is the sum
    of the two, and its reward minus the squared error; all others give 0. Whoever always says 1 has -1/6, which counts
    as 0. Every step's info has the truth so far, `target` float32 [B, 1], and `target_mask` bool [B], true at the end.

    Args:
        num_envs: number of copies B.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {"length": Param(50, 2, 100_000, "numbers that are shown", integer=True)}
    SCORE: ClassVar[tuple[float, float]] = (-1 / 6, 0.0)
    PREDICTION: ClassVar[bool] = True

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Number and mark; a sum."""
        return Box(0.0, 1.0, (2,), np.float32), Box(-np.inf, np.inf, (1,), np.float32)

    def draw_state(self) -> AddingState:
        """A first number, and which two will be marked."""
        length, value = self.params["length"], self.uniform(0, 1, self.num_envs)
        half = length // 2
        first = (self.uniform(0, 1, self.num_envs) * half).long()
        second = half + (self.uniform(0, 1, self.num_envs) * (length - half)).long()
        return AddingState(value, torch.zeros_like(value), first, second, torch.zeros_like(first))

    def advance(self, state: AddingState, action: Tensor) -> tuple[AddingState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the sum in the last step, and show another number."""
        total = state.total + state.value * self._marked(state)
        step = state.step + 1
        ends = step >= self.params["length"]
        reward = -(action.squeeze(1) - total).square() * ends
        following = AddingState(self.uniform(0, 1, self.num_envs), total, state.first, state.second, step)
        return following, reward, ends, {"target": total.unsqueeze(1), "target_mask": ends}

    def observe(self, state: AddingState) -> Tensor:
        """The number and its mark."""
        return torch.stack((state.value, self._marked(state).float()), 1)

    def _marked(self, state: AddingState) -> Tensor:
        return (state.step == state.first) | (state.step == state.second)
