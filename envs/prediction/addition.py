"""Addition: two long numbers, digit by digit from the last one on, and their sum likewise.

Source: addition with numbers longer than those trained on, as in McLeish et al. (2024, arXiv 2405.17399), "Transformers
can do arithmetic with the right embeddings": numbers reversed, right if every digit is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range


@dataclass(frozen=True)
class AdditionState:
    """`pair` int64 [B, 2]: the digits that are shown, or `base` twice at the end; `carry` and `left` int64 [B]: digits
    that come after these; `right` bool [B]: so far."""

    pair: Tensor
    carry: Tensor
    left: Tensor
    right: Tensor


class Addition(BatchedEnv):
    """Two numbers of up to `digits` digits, the last digits first, then a step that asks for what is carried.

    Observation: MultiDiscrete([base + 1] * 2), a digit of each number, or `base` twice in the last step. The action is
    the digit of the sum. The numbers of an episode have `least` to `digits` digits (drawn uniformly), each drawn
    uniformly, and the episode is one step longer than that; nothing says how long they are. The return is 1 if every
    digit of the sum was right, else 0. Every step's info has the truth, `target` int64 [B], and `target_mask` bool [B].

    Args:
        num_envs: number of copies B.
        base: of the digits.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "digits": Param(10, 1, 100_000, "digits of the longest numbers", integer=True),
        "least": Param(
            0, 0, 100_000, "digits of the shortest numbers; 0, or above digits: all have digits", integer=True
        ),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(self, num_envs: int = 1, *, base: Annotated[int, Range(2, 1000)] = 10, **kwargs: Any) -> None:
        self.base = base
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Two digits; one."""
        return MultiDiscrete([self.base + 1] * 2), Discrete(self.base)

    def draw_state(self) -> AdditionState:
        """The last digits, and how many there are."""
        digits, least = self.params["digits"], self.params["least"]
        least = torch.where((least == 0) | (least > digits), digits, least)
        share = torch.rand(self.num_envs, generator=self.generator, device=self.device, dtype=torch.float64)
        length = least + (share * (digits - least + 1)).long()
        right = torch.ones_like(length, dtype=torch.bool)
        return AdditionState(self.randint(self.base, self.num_envs, 2), torch.zeros_like(length), length - 1, right)

    def advance(self, state: AdditionState, action: Tensor) -> tuple[AdditionState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the digit and show the next two."""
        ends = state.left < 0
        total = torch.where(ends, 0, state.pair.sum(1)) + state.carry
        target = total % self.base
        right = state.right & (action == target)
        last = (state.left == 0).unsqueeze(1)
        pair = torch.where(last, self.base, self.randint(self.base, self.num_envs, 2))
        info = {"target": target, "target_mask": torch.ones_like(ends)}
        return AdditionState(pair, total // self.base, state.left - 1, right), (ends & right).float(), ends, info

    def observe(self, state: AdditionState) -> Tensor:
        """A digit of each number."""
        return state.pair
