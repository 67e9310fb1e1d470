"""GridWorld: find the goal of a small maze that is seen whole; another layout is another task.

Source: the rewards are those of MiniGrid (Chevalier-Boisvert et al. 2023). Many layouts one after the other under one
head are a stream in which everything is relearned or transferred, as in the comparison of CKA-RL and others (2026).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range
from lifelong.envs.render import COLOURS, GREY, Canvas

#: left, right, up, down: row, column
MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))
WALLS = 0.25


@lru_cache(maxsize=1024)
def layout_of(seed: int, size: int) -> Tensor:
    """Steps from every cell to the goal, int64 [size * size], -1 in walls and where no way leads from."""
    rng, cells = np.random.default_rng(seed), size * size
    while True:
        wall = rng.random((size, size)) < WALLS
        goal = int(rng.integers(cells))
        wall.flat[goal] = False
        away = np.full((size, size), -1)
        away.flat[goal], front = 0, [divmod(goal, size)]
        for row, column in front:
            for down, right in MOVES:
                y, x = row + down, column + right
                if 0 <= y < size and 0 <= x < size and not wall[y, x] and away[y, x] < 0:
                    away[y, x] = away[row, column] + 1
                    front.append((y, x))
        if len(front) > max(1, cells // 2):
            return torch.from_numpy(away.ravel())


@dataclass(frozen=True)
class GridWorldState:
    """`cell` int64 [B]: where it is, row * size + column; `step` int64 [B]."""

    cell: Tensor
    step: Tensor


class GridWorld(BatchedEnv):
    """A maze of `size` x `size` cells, a quarter of them walls, with a goal; walls, goal and agent are seen from above.

    Observation: float32 [B, 3 `size`^2] of zeros and ones: walls (and cells that nobody can come to), the goal, the
    agent. Actions: left, right, up, down; walls hold it back. An episode begins in any other cell and terminates at the
    goal, which gives 1 - 0.9 t / `max_episode_steps` after t steps. Walls and goal belong to the layout.

    Args:
        num_envs: number of copies B.
        size: cells of a side.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "layout": Param(0, 0, 2**31, "seed of walls and goal", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.24, 0.876)
    MAX_EPISODE_STEPS: ClassVar[int] = 30

    def __init__(self, num_envs: int = 1, *, size: Annotated[int, Range(2, 40)] = 6, **kwargs: Any) -> None:
        self.size = size
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Walls, goal and agent; four moves."""
        return Box(0.0, 1.0, (3 * self.size**2,), np.float32), Discrete(4)

    def draw_state(self) -> GridWorldState:
        """Any cell from which a way leads to the goal, and not the goal."""
        share = torch.rand(self.num_envs, generator=self.generator, device=self.device, dtype=torch.float64)
        which = (share * self.starts_B).long().unsqueeze(1)
        return GridWorldState(self.order_BC.gather(1, which).squeeze(1), torch.zeros_like(self.starts_B))

    def advance(
        self, state: GridWorldState, action: Tensor
    ) -> tuple[GridWorldState, Tensor, Tensor, dict[str, Tensor]]:
        """Go; walls hold it back."""
        row, column = state.cell // self.size, state.cell % self.size
        y = (row + (action == 3).long() - (action == 2).long()).clamp(0, self.size - 1)
        x = (column + (action == 1).long() - (action == 0).long()).clamp(0, self.size - 1)
        there = y * self.size + x
        cell = torch.where(self._away(there) < 0, state.cell, there)
        step, found = state.step + 1, self._away(cell) == 0
        limit = self.params["max_episode_steps"].clamp(min=1)
        reward = torch.where(found, 1 - 0.9 * step / limit, 0.0)
        return GridWorldState(cell, step), reward, found, {}

    def observe(self, state: GridWorldState) -> Tensor:
        """Walls, goal and agent."""
        here = torch.arange(self.size**2, device=self.device) == state.cell.unsqueeze(1)
        return torch.cat((self.away_BC < 0, self.away_BC == 0, here), 1).float()

    def oracle(self, state: GridWorldState) -> Tensor:
        """Actions int64 [B] of a shortest way."""
        row, column = state.cell // self.size, state.cell % self.size
        far = []
        for down, right in MOVES:
            y, x = row + down, column + right
            inside = (y >= 0) & (y < self.size) & (x >= 0) & (x < self.size)
            away = self._away((y * self.size + x).clamp(0, self.size**2 - 1))
            far.append(torch.where(inside & (away >= 0), away, self.size**2))
        return torch.stack(far, 1).argmin(1)

    def render(self, state: Any = None, index: int = 0) -> Any:
        """Walls, goal and agent."""
        state = state or self.state
        canvas = Canvas((-0.5, self.size + 0.5), (-0.5, self.size + 0.5))
        for cell, away in enumerate(self.away_BC[index].tolist()):
            row, column = divmod(cell, self.size)
            colour = GREY if away < 0 else COLOURS[2] if away == 0 else (228, 231, 235)
            canvas.box(column + 0.04, self.size - row - 0.96, 0.92, 0.92, colour)
        row, column = divmod(int(state.cell[index]), self.size)
        canvas.disc(column + 0.5, self.size - row - 0.5, 0.32, COLOURS[0])
        return canvas.array()

    def _away(self, cell: Tensor) -> Tensor:
        return self.away_BC.gather(1, cell.unsqueeze(1)).squeeze(1)

    def params_changed(self) -> None:
        """Look up what belongs to the task of every copy."""
        rows = [layout_of(seed, self.size) for seed in self.params["layout"].tolist()]
        #: steps to the goal; cells with those one can begin in before all others; how many there are
        self.away_BC = torch.stack(rows).to(self.device)
        self.order_BC = (self.away_BC <= 0).long().argsort(dim=1, stable=True)
        self.starts_B = (self.away_BC > 0).sum(1)
