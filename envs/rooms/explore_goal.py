"""RoomsExploreGoal: find the goal in a maze that was never seen before, then find it again and again.

Source: `explore_goal_locations` of DeepMind Lab (Beattie et al. 2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lifelong.envs.memory.labyrinth import mazes
from lifelong.envs.options import Range
from lifelong.envs.rooms.rooms import Rooms, RoomsState, below, near, other_than, put
from lifelong.envs.rooms.textures import GOAL, WALL, WALLS

#: the share of walls inside that are taken away, so that there is more than one way
OPENED = 0.25


@dataclass(frozen=True)
class ExploreGoalState(RoomsState):
    """`maze` int64 [B]: which one; `goal` int64 [B]: which of its free cells."""

    maze: Tensor
    goal: Tensor


class RoomsExploreGoal(Rooms):
    """A maze with an apple in a cell. Touching it gives 10 and leads to another cell, looking anywhere; maze and apple
    stay the same in all of an episode. Mazes are drawn from 1,024 that are made beforehand; blocks of 2 x 2 cells have
    walls of one kind each, so that places can be told from each other.

    Args:
        num_envs: number of copies B.
        rooms: cells a side that are always free; with those between them the maze has 2 rooms - 1 a side.
        **kwargs: see `Rooms`.
    """

    SCORE: ClassVar[tuple[float, float]] = (3.0, 127.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 450

    def __init__(self, num_envs: int = 1, *, rooms: Annotated[int, Range(2, 7)] = 4, **kwargs: Any) -> None:
        self.rooms, self.size = rooms, 2 * rooms + 1
        super().__init__(num_envs, **kwargs)
        self.grids, self.free, self.counts = (table.to(self.device) for table in layouts(rooms))

    def draw_state(self) -> ExploreGoalState:
        """A maze, and an apple in it."""
        unit = self.unit(4)
        maze = below(unit[:, 0], len(self.grids))
        goal = below(unit[:, 1], self.counts[maze])
        x, y, heading = self.entry(unit[:, 2:], maze, goal)
        goal_x, goal_y = (each.unsqueeze(1) for each in self.middle(maze, goal))
        kind = torch.full_like(goal, GOAL).unsqueeze(1)
        there = torch.ones_like(kind, dtype=torch.bool)
        return ExploreGoalState(self.grids[maze], x, y, heading, goal_x, goal_y, kind, there, maze=maze, goal=goal)

    def entry(self, unit: Tensor, maze: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position and heading in any free cell but the goal's."""
        cell = other_than(unit[:, 0], self.counts[maze], goal)
        return *self.middle(maze, cell), unit[:, 1] * 2 * math.pi

    def middle(self, maze: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of the middle of one of the free cells."""
        cell = self.free[maze, index]
        return cell % self.size + 0.5, torch.div(cell, self.size, rounding_mode="floor") + 0.5

    def judge(self, state: Any) -> tuple[ExploreGoalState, Tensor, Tensor]:
        """Whether the apple was touched."""
        found = near(state, state.thing_x[:, 0], state.thing_y[:, 0])
        state = put(state, found, self.entry(self.unit(2), state.maze, state.goal))
        return state, 10.0 * found, torch.zeros_like(found)


@lru_cache(maxsize=4)
def layouts(rooms: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mazes.

    Returns:
        Textures of walls uint8 [mazes, S, S]; free cells y * S + x, int64 [mazes, S * S], and how many there are,
        int64 [mazes].
    """
    rng = np.random.default_rng(rooms)
    wall = mazes(rooms)[:, 1:-1, 1:-1].numpy() > 0
    count, size = len(wall), 2 * rooms + 1
    between = (np.arange(size)[:, None] + np.arange(size)) % 2 == 1
    between[[0, -1]] = between[:, [0, -1]] = False
    wall &= ~(between & (rng.random(wall.shape) < OPENED))
    block = WALL + rng.integers(0, WALLS, (count, rooms + 1, rooms + 1))
    texture = block.repeat(2, 1).repeat(2, 2)[:, :size, :size]
    order = np.argsort(wall.reshape(count, -1), axis=1, kind="stable")
    return (
        torch.from_numpy(np.where(wall, texture, 0).astype(np.uint8)),
        torch.from_numpy(order),
        torch.from_numpy((~wall).sum((1, 2))),
    )
