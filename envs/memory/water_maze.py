"""WaterMaze: find a platform that is not seen, and find it again and again from elsewhere, on a grid.

Source: Morris (1981), "Spatial localization does not require the presence of local cues"; as a task for a recurrent
agent `rooms_watermaze` of DeepMind Lab (Beattie et al. 2016), of which `RoomsWaterMaze` is the one in first person.
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
from lifelong.envs.render import COLOURS, Canvas

LEFT, RIGHT, UP, DOWN = range(4)


@dataclass(frozen=True)
class WaterMazeState:
    """`place` and `platform` int64 [B, 2]: row and column; `found` bool [B]: it stands on the platform."""

    place: Tensor
    platform: Tensor
    found: Tensor


class WaterMaze(BatchedEnv):
    """A square pool of `size` cells a side with a platform somewhere, the same in an episode.

    Observation: float32 [B, 2 `size` + 1] of zeros and ones: row and column of the agent, one-hot, and whether it
    stands on the platform. Actions: left, right, up, down; who swims into the wall stays. Who comes to the platform
    gets 1, and whatever it does next, it is put into any other cell. Truncates after `max_episode_steps` 100 steps; the
    return is how often the platform was found.

    Args:
        num_envs: number of copies B.
        size: cells of a side.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {}
    SCORE: ClassVar[tuple[float, float]] = (0.7, 15.9)
    MAX_EPISODE_STEPS: ClassVar[int] = 100

    def __init__(self, num_envs: int = 1, *, size: Annotated[int, Range(2, 100)] = 8, **kwargs: Any) -> None:
        self.size = size
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Row, column, and the sign; four moves."""
        return Box(0.0, 1.0, (2 * self.size + 1,), np.float32), Discrete(4)

    def draw_state(self) -> WaterMazeState:
        """A platform, and any other cell."""
        platform = self.randint(self.size, self.num_envs, 2)
        return WaterMazeState(self._elsewhere(platform), platform, torch.zeros_like(self.age_B, dtype=torch.bool))

    def advance(
        self, state: WaterMazeState, action: Tensor
    ) -> tuple[WaterMazeState, Tensor, Tensor, dict[str, Tensor]]:
        """Swim, or be put elsewhere."""
        row = (action == DOWN).long() - (action == UP).long()
        column = (action == RIGHT).long() - (action == LEFT).long()
        swum = (state.place + torch.stack((row, column), 1)).clamp(0, self.size - 1)
        place = torch.where(state.found.unsqueeze(1), self._elsewhere(state.platform), swum)
        found = (place == state.platform).all(1)
        following = WaterMazeState(place, state.platform, found)
        return following, found.float(), torch.zeros_like(found), {}

    def observe(self, state: WaterMazeState) -> Tensor:
        """Row, column, and whether it stands on the platform."""
        each = torch.arange(self.size, device=self.device)
        row, column = (state.place[:, i : i + 1] == each for i in range(2))
        return torch.cat((row, column, state.found.unsqueeze(1)), 1).float()

    def oracle(self, state: WaterMazeState) -> Tensor:
        """Actions int64 [B] of who knows where the platform is."""
        row, column = (state.platform - state.place).unbind(1)
        down = torch.where(row > 0, DOWN, UP)
        return torch.where(row != 0, down, torch.where(column > 0, RIGHT, LEFT))

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The pool, the platform and the agent."""
        state = state or self.state
        canvas = Canvas((-0.5, self.size + 0.5), (-0.5, self.size + 0.5))
        canvas.box(0, 0, self.size, self.size, (196, 220, 235))
        for at in range(1, self.size):
            canvas.line((at, 0), (at, self.size), colour=(214, 232, 242), width=1)
            canvas.line((0, at), (self.size, at), colour=(214, 232, 242), width=1)
        row, column = state.platform[index].tolist()
        canvas.box(column + 0.1, self.size - row - 0.9, 0.8, 0.8, COLOURS[1], corner=0.1)
        row, column = state.place[index].tolist()
        canvas.disc(column + 0.5, self.size - row - 0.5, 0.3, COLOURS[0])
        return canvas.array()

    def _elsewhere(self, platform: Tensor) -> Tensor:
        """Any cell but the platform's, [B, 2]."""
        cells = self.size**2
        flat = platform[:, 0] * self.size + platform[:, 1]
        flat = (flat + 1 + self.randint(cells - 1, self.num_envs)) % cells
        return torch.stack((flat // self.size, flat % self.size), 1)
