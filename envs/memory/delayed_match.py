"""DelayedMatch: choose what was shown at the beginning, or what was not.

The delayed match and non-match to sample of animal studies (Blough 1959; Mishkin & Delacour 1975), in symbols; which
of the two rules holds is a parameter, so that it can change from task to task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range
from lifelong.envs.render import cards


@dataclass(frozen=True)
class DelayedMatchState:
    """`sample`, `other` int64 [B]: symbols; `side` int64 [B]: where the sample comes again; `step` int64 [B]."""

    sample: Tensor
    other: Tensor
    side: Tensor
    step: Tensor


class DelayedMatch(BatchedEnv):
    """Delayed match and non-match to sample.

    Observation: float32 [B, 2 * symbols], what is seen left and right, both one-hot. In the first step the sample is
    seen on both sides; then nothing for `delay` steps; then the sample on one side and another symbol on the other.
    Actions: 0 waits, 1 chooses left, 2 right. While there is something to choose, the sample's side is right
    (`nonmatch` 0), or the other one (1), with reward 1; the wrong side and waiting have -1; the episode then
    terminates. Choosing before costs `impatience`. `info["success"]` [B] float32 is 1 on a step that ended with the
    right choice, else 0.

    Args:
        num_envs: number of copies B.
        symbols: different symbols.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "delay": Param(10, 0, 100_000, "steps between the sample and the choice", integer=True),
        "nonmatch": Param(0, 0, 1, "1: what was not the sample is right", integer=True),
        "impatience": Param(0.0, 0.0, 1.0, "cost of a choice when there is none"),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, num_envs: int = 1, *, symbols: Annotated[int, Range(2, 256)] = 4, **kwargs: Any) -> None:
        self.symbols = symbols
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """What is left and right; wait, left and right."""
        return Box(0.0, 1.0, (2 * self.symbols,), np.float32), Discrete(3)

    def draw_state(self) -> DelayedMatchState:
        """A sample, another symbol, and the side on which the sample comes again."""
        sample = self.randint(self.symbols, self.num_envs)
        other = (sample + 1 + self.randint(self.symbols - 1, self.num_envs)) % self.symbols
        return DelayedMatchState(sample, other, self.randint(2, self.num_envs), torch.zeros_like(self.age_B))

    def advance(
        self, state: DelayedMatchState, action: Tensor
    ) -> tuple[DelayedMatchState, Tensor, Tensor, dict[str, Tensor]]:
        """Wait, or choose."""
        p = self.params
        ends = state.step > p["delay"]
        success = ends & (action == 1 + (state.side + p["nonmatch"]) % 2)
        early = (action > 0).float() * p["impatience"]
        reward = torch.where(ends, 2.0 * success.float() - 1.0, -early)
        following = DelayedMatchState(state.sample, state.other, state.side, state.step + 1)
        return following, reward, ends, {"success": success.float()}

    def observe(self, state: DelayedMatchState) -> Tensor:
        """The sample, nothing, or two symbols to choose from."""
        first, choice = state.step == 0, state.step > self.params["delay"]
        seen = []
        for side in (0, 1):
            symbol = torch.where(first | (state.side == side), state.sample, state.other)
            each = torch.arange(self.symbols, device=self.device)
            seen.append((symbol.unsqueeze(1) == each) & (first | choice).unsqueeze(1))
        return torch.cat(seen, 1).float()

    def render(self, state: Any = None, index: int = 0) -> Any:
        """What is seen left and right, with the rule."""
        state = state or self.state
        halves = self.observe(state)[index].view(2, -1)
        shown = [int(half.argmax()) if bool(half.any()) else None for half in halves]
        rule = "the other one" if int(self.params["nonmatch"][index]) else "the same"
        return cards(shown, ["left", "right"], f"step {int(state.step[index])}: {rule} is right")
