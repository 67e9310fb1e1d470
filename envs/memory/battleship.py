"""Battleship: sink ships on a board that is never shown.

Source: POPGym (see `envs.memory.popgym`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.memory.popgym import POPGymTask, below
from lifelong.envs.render import COLOURS, GREY, board

SHIPS = (2, 3, 3, 4)
BOARDS = 8192


@lru_cache(maxsize=4)
def boards(size: int) -> Tensor:
    """`BOARDS` boards of `size` x `size`, uint8 [boards, size^2], 1 where a ship lies.

    A ship starts anywhere and points in any of four directions, drawn again until it lies on the board and on no other.
    """
    generator = torch.Generator().manual_seed(size)
    made = torch.zeros(BOARDS, size, size, dtype=torch.uint8)
    for ship in SHIPS:
        waiting = torch.arange(BOARDS)
        while len(waiting):
            start = torch.randint(size, (len(waiting), 2, 1), generator=generator)
            axis, sign = torch.randint(2, (2, len(waiting), 1), generator=generator)
            along = torch.arange(ship) * (2 * sign - 1)
            y, x = start[:, 0] + along * (1 - axis), start[:, 1] + along * axis
            inside = ((y >= 0) & (y < size) & (x >= 0) & (x < size)).all(1)
            free = made[waiting.unsqueeze(1), y.clamp(0, size - 1), x.clamp(0, size - 1)].sum(1) == 0
            fits = inside & free
            made[waiting[fits].unsqueeze(1), y[fits], x[fits]] = 1
            waiting = waiting[~fits]
    return made.flatten(1)


@dataclass(frozen=True)
class BattleshipState:
    """`board` int64 [B]: which of the boards; `shot` bool [B, cells]: cells that were shot at; `hits`, `hit` and `step`
    int64 [B]: hits so far, whether the last shot was one, shots so far."""

    board: Tensor
    shot: Tensor
    hits: Tensor
    hit: Tensor
    step: Tensor


class Battleship(POPGymTask):
    """Ships of 2, 3, 3 and 4 cells on 8 x 8, 10 x 10 or 12 x 12 cells.

    Observation: whether the last shot was a new hit, one-hot float32 [B, 2]; the agent needs its last action besides.
    Actions: the cells, row after row (POPGym's are pairs of row and column). A new hit gives +1/12, any other shot -1 /
    (cells - 12). The episode ends when all is hit, or after as many shots as there are cells. Boards are drawn from
    8,192 that are made beforehand.
    """

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"size": 8, "score": (-0.45, 1.0)},
        "medium": {"size": 10, "score": (-0.42, 1.0)},
        "hard": {"size": 12, "score": (-0.4, 1.0)},
    }

    def arrange(self, size: int) -> None:
        """Such a board."""
        self.cells, self.needed, self.table = size * size, sum(SHIPS), boards(size)
        self.categories, self.actions = (2,), self.cells

    def draw_state(self) -> BattleshipState:
        """One of the boards."""
        if self.table.device != self.device:
            self.table = self.table.to(self.device)
        board, none = below(self.unit(), BOARDS), self.zeros()
        return BattleshipState(board, self.zeros(self.cells, dtype=torch.bool), none, none, none)

    def advance(
        self, state: BattleshipState, action: Tensor
    ) -> tuple[BattleshipState, Tensor, Tensor, dict[str, Tensor]]:
        """Shoot at a cell."""
        place = action.unsqueeze(1)
        hit = (self.table[state.board, action] > 0) & ~state.shot.gather(1, place).squeeze(1)
        hits, step = state.hits + hit.long(), state.step + 1
        reward = torch.where(hit, 1.0 / self.needed, -1.0 / (self.cells - self.needed))
        shot = state.shot | (torch.arange(self.cells, device=self.device) == place)
        over = (hits == self.needed) | (step >= self.cells)
        return BattleshipState(state.board, shot, hits, hit.long(), step), reward, over, {}

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The board: water, ships, and what was shot at."""
        state, size = state or self.state, int(self.cells**0.5)
        ship, shot = self.table[state.board[index]] > 0, state.shot[index]
        values = (2 * shot.long() + ship.long()).view(size, size).cpu().numpy()
        return board(values, [(205, 220, 235), GREY, COLOURS[0], COLOURS[3]], ["", "", "\u00b7", "x"])

    def shown(self, state: BattleshipState) -> Tensor:
        """Whether the last shot was a hit."""
        return state.hit.unsqueeze(1)
