"""Parity: is the number of ones among the last N digits odd? And N-DMS: is the last digit that of N steps ago?

Source: Khajehabdollahi, Zeraati, Giannakakis, Schäfer, Martius & Levina (ICLR 2024, arXiv 2309.12927), "Emergent
mechanisms for long timescales depend on training curriculum and affect performance in memory tasks", section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range


@dataclass(frozen=True)
class ParityState:
    """`digits` int64 [B, longest]: the last ones, the newest first; `left` int64 [B]: steps until the answer."""

    digits: Tensor
    left: Tensor


class Parity(BatchedEnv):
    """N-parity and N-DMS with a per-copy N, one answer for every N from 2 to `longest`.

    Observation: float32 [B, 1], a random digit, 0 or 1, a step. An episode has from n + 2 to 4 n + 2 digits, drawn
    uniformly, and is answered in its last step, which no sign announces. The action is one guess for every N from 2 on,
    MultiDiscrete([2] * (`longest` - 1)), one a head of the paper. Reward of the last step is 1 if that for N = n is
    right; guessing has 0.5, which counts as 0. Every step's info has the truth, `target` int64 [B, `longest` - 1] for
    the N from `least` to n and -1 for the others, and `target_mask` bool [B], where it is to be answered.

    Args:
        num_envs: number of copies B.
        longest: the largest N that there is an answer for.
        question: `parity`: whether the sum of the last N digits is odd; `match`: whether the last digit is the one that
            was shown N - 1 steps before it (N-DMS).
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: an `n` above `longest`, a `least` above `n` (also see `BatchedEnv`).
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "n": Param(2, 2, 64, "digits that count", integer=True),
        "least": Param(0, 0, 64, "the truth is told for all N from this one to n; 0: for n alone", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.5, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        longest: Annotated[int, Range(2, 64)] = 2,
        question: Literal["parity", "match"] = "parity",
        **kwargs: Any,
    ) -> None:
        self.longest, self.question = longest, question
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A digit; an answer for every N."""
        return Box(0.0, 1.0, (1,), np.float32), MultiDiscrete([2] * (self.longest - 1))

    def draw_state(self) -> ParityState:
        """A first digit, and a length of the episode."""
        digits = self.randint(2, self.num_envs, self.longest)
        digits[:, 1:] = 0  # none has been shown before it
        n = self.params["n"]
        share = torch.rand(self.num_envs, generator=self.generator, device=self.device, dtype=torch.float64)
        return ParityState(digits, n + 2 + (share * (3 * n + 1)).long() - 1)

    def advance(self, state: ParityState, action: Tensor) -> tuple[ParityState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the answer in the last step, and show another digit."""
        if self.question == "parity":
            truth = state.digits.cumsum(1) % 2
        else:
            truth = (state.digits == state.digits[:, :1]).long()
        n, least = self.params["n"].unsqueeze(1), self.params["least"].unsqueeze(1)
        each = torch.arange(2, self.longest + 1, device=self.device)
        asked = (each <= n) & (each >= torch.where(least == 0, n, least))
        target = truth[:, 1:].masked_fill(~asked, -1)
        ends = state.left <= 0
        reward = ends & (action == target).gather(1, n - 2).squeeze(1)
        new = self.randint(2, self.num_envs, 1)
        digits = torch.cat([new, state.digits[:, :-1]], 1)
        return ParityState(digits, state.left - 1), reward, ends, {"target": target, "target_mask": ends}

    def observe(self, state: ParityState) -> Tensor:
        """The newest digit."""
        return state.digits[:, :1].float()

    def params_changed(self) -> None:
        """Refuse what does not go together."""
        n, least = self.params["n"], self.params["least"]
        if bool((n > self.longest).any()):
            raise EnvError(f"Parity.n is {int(n.max())}, above longest, {self.longest}; set longest to {int(n.max())}")
        if bool((least > n).any()) or bool((least == 1).any()):
            raise EnvError("Parity.least must be 0, or lie between 2 and n")
