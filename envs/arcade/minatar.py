"""What the games of MinAtar share: six actions of which the last may stick, and pictures of 10 x 10 cells.

Source: Young & Tian (2019), "MinAtar: An Atari-inspired testbed for thorough and reproducible reinforcement learning
experiments", and its package, whose order of events is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range

SIZE = 10
STAY, LEFT, UP, RIGHT, DOWN, FIRE = range(6)


class MinAtarGame(BatchedEnv):
    """A game of MinAtar.

    Observation: uint8 [B, 10, 10, channels] of 0 and 1. Actions: 0 nothing, 1 left, 2 up, 3 right, 4 down, 5 fire, in
    all games. Subclasses write `draw_state`, `play` and `picture`; their state has `last` int64 [B], the last action,
    and `luck` float32 [B], which decides whether it sticks.

    Args:
        num_envs: number of copies B.
        channels: empty channels are added up to this number, so that games of one stream share a space; 0: none.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: fewer channels than the game has; see also `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "sticky": Param(0.1, 0.0, 1.0, "probability that the last action is taken instead"),
    }
    #: what the channels of the picture show
    CHANNELS: ClassVar[tuple[str, ...]]

    def __init__(self, num_envs: int = 1, *, channels: Annotated[int, Range(0, 64)] = 0, **kwargs: Any) -> None:
        if channels and channels < len(self.CHANNELS):
            raise EnvError(
                f"{type(self).__name__}.channels is {channels}; the game has {len(self.CHANNELS)}, so give as many or 0"
            )
        self.channels = channels or len(self.CHANNELS)
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A picture of bits; six actions."""
        return Box(0, 1, (SIZE, SIZE, self.channels), np.uint8), Discrete(6)

    def play(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor]:
        """One frame: (next state, reward int64 [B], over bool [B]); `last` and `luck` are taken care of."""
        raise NotImplementedError

    def picture(self, state: Any) -> Mapping[str, Tensor]:
        """Of every channel the cells that are set, bool [B, 10, 10]; y, x."""
        raise NotImplementedError

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        """One frame with the action that is given, or the last one."""
        action = torch.where(state.luck < self.params["sticky"], state.last, action)
        following, reward, over = self.play(state, action)
        return replace(following, last=action, luck=self.unit()), reward.float(), over, {}

    def observe(self, state: Any) -> Tensor:
        """The picture."""
        shown = self.picture(state)
        empty = self.zeros(SIZE, SIZE, self.channels - len(shown), dtype=torch.bool)
        cells = torch.stack([shown[name] for name in self.CHANNELS], 3)
        return (torch.cat((cells, empty), 3) if self.channels > len(shown) else cells).to(torch.uint8)

    # ---- helpers -------------------------------------------------------------------------------------------------

    def unit(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32 [B, *shape]; all draws are of this one kind, which is fast."""
        return self.uniform(0.0, 1.0, self.num_envs, *shape)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Zeros [B, *shape]."""
        return torch.zeros(self.num_envs, *shape, dtype=dtype, device=self.device)

    def axis(self) -> Tensor:
        """0 to 9, int64 [10]."""
        return torch.arange(SIZE, device=self.device)

    def cell(self, y: Tensor, x: Tensor) -> Tensor:
        """The picture of one cell, bool [B, 10, 10]."""
        row, column = self.axis() == y.unsqueeze(1), self.axis() == x.unsqueeze(1)
        return row.unsqueeze(2) & column.unsqueeze(1)

    def things(self, y: Tensor, x: Tensor, there: Tensor) -> Tensor:
        """The picture of things at y and x [B, n], those that are there (bool [B, n]); bool [B, 10, 10]."""
        row = torch.where(there & (x >= 0) & (x < SIZE), torch.ones_like(x) << x.clamp(0, SIZE - 1), 0)
        rows = self.zeros(SIZE)
        for i in range(row.shape[1]):
            rows = rows | torch.where(y[:, i : i + 1] == self.axis(), row[:, i : i + 1], 0)
        return self.bits(rows.unbind(1))

    def lanes(self, x: Tensor, there: Tensor) -> Tensor:
        """The picture of one thing in each of the rows 1 to 8, at x [B, 8] if it is there; bool [B, 10, 10]."""
        row = torch.where(there & (x >= 0) & (x < SIZE), torch.ones_like(x) << x.clamp(0, SIZE - 1), 0)
        none = self.zeros()
        return self.bits([none, *row.unbind(1), none])

    def bits(self, rows: Sequence[Tensor]) -> Tensor:
        """The picture of ten numbers int64 [B], a row each, whose bit x says whether a cell is set; bool [B, 10, 10].

        They come one by one, so that compiled code makes each once and not for every cell.
        """
        return (torch.stack(list(rows), 1).unsqueeze(2) >> self.axis()) & 1 > 0


def moved(action: Tensor, less: int, more: int) -> Tensor:
    """-1, 0 or 1, int64 [B]: whether the action is `less` or `more`."""
    return (action == more).long() - (action == less).long()


def onward(right: Tensor) -> Tensor:
    """1 to the right, -1 to the left, int64."""
    return 2 * right.long() - 1
