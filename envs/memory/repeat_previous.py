"""RepeatPrevious: say which symbol was shown some steps ago.

Source: Morad et al. (2023), "POPGym: Benchmarking partially observable reinforcement learning".
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
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range
from lifelong.envs.render import cards

MAX_LAG = 64


@dataclass(frozen=True)
class RepeatPreviousState:
    """`history` uint8 [B, 65]: the symbols shown, newest first; `shown` int64 [B]: how many came before the newest."""

    history: Tensor
    shown: Tensor


class RepeatPrevious(BatchedEnv):
    """RepeatPrevious with per-copy lag.

    Observation: the symbol of this step, one-hot float32 [B, symbols], drawn afresh at every step. The action must
    equal the symbol of `lag` steps ago. The first `lag` steps give no reward; after them each step gives +1/(length -
    lag) if right and -1/(length - lag) if wrong, so that returns lie in [-1, 1]. Terminates after `length` steps.

    POPGym counts the symbol in view as k = 1, so its k is `lag` + 1: RepeatPreviousEasy (k 4) is lag 3, length 51,
    Medium (k 32) lag 31, length 103, Hard (k 64) lag 63, length 155. It deals from a deck without putting cards back
    and truncates at the end; here every symbol is drawn afresh, and the end terminates.

    Args:
        num_envs: number of copies B.
        symbols: number of symbols, 2 to 256. `SCORE` follows from it: guessing returns -1 + 2/symbols.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: `symbols` is out of range, or some copy's `lag` is not below its `length`; see also `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "lag": Param(4, 1, MAX_LAG, "how many steps ago the asked-for symbol was shown", integer=True),
        "length": Param(51, 2, 100_000, "steps of an episode", integer=True),
    }

    def __init__(self, num_envs: int = 1, *, symbols: Annotated[int, Range(2, 256)] = 4, **kwargs: Any) -> None:
        if not 2 <= symbols <= 256:
            raise EnvError(f"RepeatPrevious.symbols is {symbols}; it must lie between 2 and 256")
        self.symbols = symbols
        # Depends on an option, hence on the instance.
        self.SCORE = (-1.0 + 2.0 / symbols, 1.0)  # type: ignore[misc]
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A one-hot symbol; a symbol."""
        return Box(0.0, 1.0, (self.symbols,), np.float32), Discrete(self.symbols)

    def draw_state(self) -> RepeatPreviousState:
        """The first symbol; older entries of the history are never asked for."""
        symbol = self._symbol()
        return RepeatPreviousState(
            history=torch.cat((symbol, symbol.new_zeros(self.num_envs, MAX_LAG)), 1),
            shown=torch.zeros(self.num_envs, dtype=torch.int64, device=self.device),
        )

    def advance(
        self, state: RepeatPreviousState, action: Tensor
    ) -> tuple[RepeatPreviousState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the action and show the next symbol."""
        lag, length = self.params["lag"], self.params["length"]
        asked = state.history.gather(1, lag.unsqueeze(1)).squeeze(1)
        correct = (action == asked).float()
        reward = (2.0 * correct - 1.0) * (state.shown >= lag) / (length - lag)
        symbol = self._symbol()
        shown = state.shown + 1
        following = RepeatPreviousState(torch.cat((symbol, state.history[:, :-1]), 1), shown)
        return following, reward, shown >= length, {}

    def observe(self, state: RepeatPreviousState) -> Tensor:
        """The newest symbol, one-hot."""
        return torch.nn.functional.one_hot(state.history[:, 0].long(), self.symbols).float()

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The symbol in view at the right, and those before it; the first is the answer."""
        state, lag = state or self.state, int(self.params["lag"][index])
        seen = state.history[index, : lag + 1].flip(0).tolist()
        known = int(state.shown[index]) + 1
        values = [value if lag + 1 - i <= known else None for i, value in enumerate(seen)]
        return cards(values[-12:], ["answer", *[""] * (lag - 1), "in view"][-12:])

    def params_changed(self) -> None:
        """Refuse a lag that is not below the length."""
        lag, length = self.params["lag"], self.params["length"]
        if bool((lag >= length).any()):
            raise EnvError(
                f"RepeatPrevious.lag must lie below length in every copy; lag is up to {int(lag.max())}, "
                f"length down to {int(length.min())}"
            )

    def _symbol(self) -> Tensor:
        return self.randint(self.symbols, self.num_envs, 1).to(torch.uint8)
