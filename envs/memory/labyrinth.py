"""Labyrinths to explore or to escape from, of which the nine cells around the agent are seen.

Source: POPGym (see `envs.memory.popgym`); its mazes come from the package mazelib ("hunt and kill").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lifelong.envs.memory.popgym import POPGymTask, below
from lifelong.envs.render import COLOURS, INK, enlarged

MAZES = 1024
FREE, WALL, START, GOAL = 0, 1, 2, 3
#: kinds of cells (the fifth is never seen), and of actions with that before the first
KINDS = 5
NO_ACTION = 4
_SIDES = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])  # left, right, up, down: y, x


@lru_cache(maxsize=4)
def mazes(rooms: int) -> Tensor:
    """`MAZES` mazes of rooms x rooms rooms, uint8 [mazes, size + 2, size + 2] with size = 2 rooms + 1 and a border.

    Hunt and kill: from a room go to a random neighbour that was not visited, taking away the wall, as long as there is
    one; then go on from a visited room, drawn among those with such a neighbour. All rooms are connected by one path.
    """
    rng = np.random.default_rng(rooms)
    each = np.arange(MAZES)
    grid = np.ones((MAZES, 2 * rooms + 3, 2 * rooms + 3), np.uint8)
    visited = np.zeros((MAZES, rooms + 2, rooms + 2), bool)
    visited[:, [0, -1]] = visited[:, :, [0, -1]] = True  # outside
    y, x = rng.integers(1, rooms + 1, (2, MAZES))

    def open_(y: np.ndarray, x: np.ndarray, up: np.ndarray, left: np.ndarray) -> None:
        grid[each, 2 * y + up, 2 * x + left] = FREE

    visited[each, y, x] = True
    open_(y, x, np.zeros_like(y), np.zeros_like(x))
    while not visited.all():
        fresh = ~np.stack([visited[each, y + dy, x + dx] for dy, dx in _SIDES], 1)
        chosen = np.where(fresh, rng.random(fresh.shape), -1).argmax(1)
        moves = fresh.any(1)
        dy, dx = _SIDES[chosen, 0] * moves, _SIDES[chosen, 1] * moves
        open_(y, x, dy, dx)
        y, x = y + dy, x + dx
        visited[each, y, x] = True
        open_(y, x, np.zeros_like(y), np.zeros_like(x))
        hunts = np.where(~moves)[0]
        inner = visited[hunts, 1:-1, 1:-1]
        around = np.stack([~visited[hunts, 1 + dy : rooms + 1 + dy, 1 + dx : rooms + 1 + dx] for dy, dx in _SIDES])
        edge = (inner & around.any(0)).reshape(len(hunts), rooms * rooms)
        place = np.where(edge, rng.random(edge.shape), -1).argmax(1)
        left = edge.any(1)
        y[hunts[left]], x[hunts[left]] = place[left] // rooms + 1, place[left] % rooms + 1
    return torch.from_numpy(grid)


@dataclass(frozen=True)
class LabyrinthState:
    """`maze` int64 [B]: which of the mazes; `place`, `start` and `goal` int64 [B, 2]: y and x; `last` int64 [B]: the
    last action, 4 before the first; `explored` bool [B, cells]; `left` int64 [B]: cells that were not explored."""

    maze: Tensor
    place: Tensor
    start: Tensor
    goal: Tensor
    last: Tensor
    explored: Tensor
    left: Tensor


class Labyrinth(POPGymTask):
    """What the two labyrinths share: 11 x 11, 15 x 15 or 19 x 19 cells, four moves, a view of 3 x 3 cells.

    Observation: the nine cells around the agent, row after row, as free, wall, start, goal or (never) hidden, and the
    last action or none; one-hot float32 [B, 50]. Actions: left, right, up, down; nobody walks through walls. The start
    is an opening in a side, and the goal would be one in the opposite side. Truncates after 1023 steps, as POPGym does.
    POPGym's view moves along by one cell at the left and the upper side, so that the agent is not in its middle there;
    here it always is. Mazes are drawn from 1,024 that are made beforehand.
    """

    MAX_EPISODE_STEPS: ClassVar[int] = 1023

    def arrange(self, rooms: int) -> None:
        """Mazes of so many rooms a side."""
        self.rooms, self.size = rooms, 2 * rooms + 1
        self.table = mazes(rooms)
        self.categories, self.actions = (KINDS,) * 10, 4
        #: rooms and the openings between them, which are one less
        self.free = 2 * rooms * rooms - 1

    def draw_state(self) -> LabyrinthState:
        """One of the mazes, a side, and where in it and in the opposite one the openings are."""
        if self.table.device != self.device:
            self.table = self.table.to(self.device)
        unit, last = self.unit(4), self.size - 1
        side = below(unit[:, 0], 4)
        near = torch.where(side % 2 == 0, 0, last)
        places = [1 + 2 * below(unit[:, i], self.rooms) for i in (1, 2)]
        start, goal = (
            torch.where((side < 2).unsqueeze(1), torch.stack((at, along), 1), torch.stack((along, at), 1))
            for at, along in ((near, places[0]), (last - near, places[1]))
        )
        cell = start[:, 0] * self.size + start[:, 1]
        explored = torch.arange(self.size**2, device=self.device) == cell.unsqueeze(1)
        none = self.zeros()
        return LabyrinthState(
            below(unit[:, 3], MAZES), start, start, goal, none + NO_ACTION, explored, none + self.free
        )

    def kind(self, state: LabyrinthState, y: Tensor, x: Tensor) -> Tensor:
        """What lies at a place, int64 [B]; walls outside."""
        kind = self.table[state.maze, y + 1, x + 1].long()
        return torch.where((y == state.start[:, 0]) & (x == state.start[:, 1]), START, kind)

    def advance(
        self, state: LabyrinthState, action: Tensor
    ) -> tuple[LabyrinthState, Tensor, Tensor, dict[str, Tensor]]:
        """Go to a neighbouring cell."""
        last, place = self.size - 1, state.place
        dx = (action == 1).long() - (action == 0).long()
        dy = (action == 3).long() - (action == 2).long()
        y, x = (place[:, 0] + dy).clamp(0, last), (place[:, 1] + dx).clamp(0, last)
        blocked = self.kind(state, y, x) == WALL
        y, x = torch.where(blocked, place[:, 0], y), torch.where(blocked, place[:, 1], x)
        cell = (y * self.size + x).unsqueeze(1)
        new = ~state.explored.gather(1, cell).squeeze(1)
        explored = state.explored | (torch.arange(self.size**2, device=self.device) == cell)
        following = LabyrinthState(
            state.maze, torch.stack((y, x), 1), state.start, state.goal, action, explored, state.left - new.long()
        )
        reward, over = self.judge(following, new)
        return following, reward, over, {}

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The maze, what was explored, start, goal and the agent."""
        state, size = state or self.state, self.size
        y, x = (each.flatten() for each in torch.meshgrid(*[torch.arange(size, device=self.device)] * 2, indexing="ij"))
        alone = type(state)(**{name: value[index : index + 1] for name, value in vars(state).items()})
        kind = self.kind(alone, y, x)
        seen = (kind == FREE) & state.explored[index]
        here = (y == state.place[index, 0]) & (x == state.place[index, 1])
        colours = torch.tensor([(250, 250, 247), INK, COLOURS[2], COLOURS[3], (214, 224, 240), COLOURS[1]])
        value = torch.where(here, 5, torch.where(seen, 4, kind)).cpu()
        return enlarged(colours[value].to(torch.uint8).view(size, size, 3).numpy())

    def judge(self, state: LabyrinthState, new: Tensor) -> tuple[Tensor, Tensor]:
        """Reward float32 [B] and end bool [B] of a step into a state; `new` bool [B]: its cell was not explored."""
        raise NotImplementedError

    def shown(self, state: LabyrinthState) -> Tensor:
        """Nine cells and the last action."""
        y, x = state.place.unbind(1)
        steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        view = [self.kind(state, (y + dy).clamp(-1, self.size), (x + dx).clamp(-1, self.size)) for dy, dx in steps]
        return torch.stack([*view, state.last], 1)


class LabyrinthExplore(Labyrinth):
    """See every free cell: +1 / (free cells) for one that is new, else -1/1024; ends when all were seen."""

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"rooms": 5, "score": (-0.36, 0.95)},
        "medium": {"rooms": 7, "score": (-0.61, 0.91)},
        "hard": {"rooms": 9, "score": (-0.74, 0.85)},
    }

    def judge(self, state: LabyrinthState, new: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(new, 1.0 / self.free, -1.0 / 1024), state.left == 0


class LabyrinthEscape(Labyrinth):
    """Find the opening in the opposite side: +1 there, and -1/1024 at every step."""

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"rooms": 5, "score": (-0.43, 0.97)},
        "medium": {"rooms": 7, "score": (-0.85, 0.95)},
        "hard": {"rooms": 9, "score": (-0.96, 0.93)},
    }

    def kind(self, state: LabyrinthState, y: Tensor, x: Tensor) -> Tensor:
        goal = (y == state.goal[:, 0]) & (x == state.goal[:, 1])
        return torch.where(goal, GOAL, super().kind(state, y, x))

    def judge(self, state: LabyrinthState, new: Tensor) -> tuple[Tensor, Tensor]:
        out = (state.place == state.goal).all(1)
        return torch.where(out, 1.0 - 1.0 / 1024, -1.0 / 1024), out
