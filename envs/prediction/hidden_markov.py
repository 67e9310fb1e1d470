"""HiddenMarkov: how likely is each symbol next, of a chain that is not seen? The exact filter is the bound.

Source: the process Mess3 of Marzen & Crutchfield (2017), at stay 0.9 and clear 0.85 that of Shai et al. (2024, arXiv
2405.15943), "Transformers represent belief state geometry in their residual stream".
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


@dataclass(frozen=True)
class HiddenMarkovState:
    """`hidden` and `symbol` int64 [B]; `belief` float32 [B, K]: how likely each state is after all symbols so far;
    `step` int64 [B]."""

    hidden: Tensor
    symbol: Tensor
    belief: Tensor
    step: Tensor


class HiddenMarkov(BatchedEnv):
    """K states and as many symbols: a state stays with probability `stay`, and shows its symbol with `clear`.

    Whatever is left of either goes to the others in equal shares. Observation: the symbol, a category. The action is
    how likely each symbol is next, float32 [B, K], in no way normalised. An episode has `length` steps and terminates.
    The reward of a step is minus the squared distance to what the exact filter says, over `length`: with a return of 0
    a filter is emulated. The score's useless policy says 1/K at the default parameters. Every step's info has the truth
    that can be observed, `target` float32 [B, K], the next symbol one-hot, and `target_mask` bool [B]; the mean of the
    squared error to it is least for the filter.

    Args:
        num_envs: number of copies B.
        symbols: K.
        length: steps of an episode.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "stay": Param(0.9, 0.0, 1.0, "probability that the state stays"),
        "clear": Param(0.85, 0.0, 1.0, "probability that a state shows its own symbol"),
    }
    SCORE: ClassVar[tuple[float, float]] = (-0.215, 0.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        symbols: Annotated[int, Range(2, 100)] = 3,
        length: Annotated[int, Range(1, 100_000)] = 100,
        **kwargs: Any,
    ) -> None:
        self.symbols, self.length = symbols, length
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A symbol; how likely each is."""
        return Discrete(self.symbols), Box(-np.inf, np.inf, (self.symbols,), np.float32)

    def draw_state(self) -> HiddenMarkovState:
        """Any state, and the symbol it shows."""
        hidden = self.randint(self.symbols, self.num_envs)
        symbol = self._other(hidden, self.params["clear"])
        even = torch.full((self.num_envs, self.symbols), 1 / self.symbols, device=self.device)
        return HiddenMarkovState(hidden, symbol, self._seen(even, symbol), torch.zeros_like(hidden))

    def advance(
        self, state: HiddenMarkovState, action: Tensor
    ) -> tuple[HiddenMarkovState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge what was said of the next symbol, and show it."""
        following = self._mixed(state.belief, self.params["stay"])
        best = self._mixed(following, self.params["clear"])
        hidden = self._other(state.hidden, self.params["stay"])
        symbol = self._other(hidden, self.params["clear"])
        reward = -(action - best).square().sum(1) / self.length
        target = self._one_hot(symbol)
        info = {"target": target, "target_mask": torch.ones_like(symbol, dtype=torch.bool)}
        step = state.step + 1
        made = HiddenMarkovState(hidden, symbol, self._seen(following, symbol), step)
        return made, reward, step >= self.length, info

    def observe(self, state: HiddenMarkovState) -> Tensor:
        """The symbol."""
        return state.symbol

    def _other(self, value: Tensor, keep: Tensor) -> Tensor:
        """`value` with probability `keep`, else one of the others."""
        draw = self.uniform(0, 1, self.num_envs)
        other = (value + 1 + self.randint(self.symbols - 1, self.num_envs)) % self.symbols
        return torch.where(draw < keep, value, other)

    def _mixed(self, likely_BK: Tensor, keep: Tensor) -> Tensor:
        """The distribution after each has been kept with probability `keep`, or gone to any of the others."""
        keep = keep.unsqueeze(1)
        return keep * likely_BK + (1 - likely_BK) * (1 - keep) / (self.symbols - 1)

    def _seen(self, likely_BK: Tensor, symbol: Tensor) -> Tensor:
        """The belief after a symbol: Bayes' rule."""
        clear, shown = self.params["clear"].unsqueeze(1), self._one_hot(symbol)
        joint = likely_BK * (shown * clear + (1 - shown) * (1 - clear) / (self.symbols - 1))
        return joint / joint.sum(1, keepdim=True).clamp(min=1e-12)

    def _one_hot(self, symbol: Tensor) -> Tensor:
        return (symbol.unsqueeze(1) == torch.arange(self.symbols, device=self.device)).float()
