"""RoomsWaterMaze: find a platform that cannot be seen, then find it again.

Source: Morris (1981); as a first-person task `rooms_watermaze` of DeepMind Lab (Beattie et al. 2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.options import Range
from lifelong.envs.rooms.rooms import Rooms, RoomsState, below, near, other_than, put
from lifelong.envs.rooms.textures import WALL, WALLS


@dataclass(frozen=True)
class WaterMazeState(RoomsState):
    """`platform` int64 [B]: the cell of the platform, row after row of the room."""

    platform: Tensor


class RoomsWaterMaze(Rooms):
    """A square room whose walls differ everywhere. A platform, as large as a cell, is somewhere in an episode, and
    nothing shows it. Who comes near to its middle gets 10 and is put into another cell, looking anywhere; the platform
    stays, so who remembers where it was finds it soon.

    Args:
        num_envs: number of copies B.
        size: cells a side.
        **kwargs: see `Rooms`.
    """

    SCORE: ClassVar[tuple[float, float]] = (8.5, 380.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 900

    def __init__(self, num_envs: int = 1, *, size: Annotated[int, Range(2, 20)] = 7, **kwargs: Any) -> None:
        self.size = size
        super().__init__(num_envs, **kwargs)
        self.room = around(size).to(self.device)

    def draw_state(self) -> WaterMazeState:
        """A platform, and who looks for it somewhere else."""
        unit = self.unit(3)
        platform = below(unit[:, 0], self.size**2)
        x, y, heading = self.entry(unit[:, 1:], platform)
        none = torch.zeros(self.num_envs, 0, device=self.device)
        return WaterMazeState(
            self.repeated(self.room), x, y, heading, none, none, none.long(), none.bool(), platform=platform
        )

    def entry(self, unit: Tensor, platform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position and heading in any cell but the platform's."""
        cell = other_than(unit[:, 0], self.size**2, platform)
        return *self.middle(cell), unit[:, 1] * 2 * math.pi

    def middle(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of the middle of a cell."""
        return cell % self.size + 1.5, torch.div(cell, self.size, rounding_mode="floor") + 1.5

    def judge(self, state: Any) -> tuple[WaterMazeState, Tensor, Tensor]:
        """Whether the platform was found."""
        found = near(state, *self.middle(state.platform), 0.5)
        state = put(state, found, self.entry(self.unit(2), state.platform))
        return state, 10.0 * found, torch.zeros_like(found)


def around(size: int) -> Tensor:
    """A room of size x size cells with walls around it, each side in three parts that differ; uint8 [S, S]."""
    grid = torch.zeros(size + 2, size + 2, dtype=torch.uint8)
    part = WALL + torch.arange(size + 2) * 3 // (size + 2)
    share = WALLS // 4
    grid[0], grid[:, -1], grid[-1], grid[:, 0] = part, part + share, part + 2 * share, part + 3 * share
    return grid
