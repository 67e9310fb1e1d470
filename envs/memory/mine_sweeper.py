"""MineSweeper: open all cells without a mine on a board that is never shown.

Source: POPGym (see `envs.memory.popgym`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.memory.popgym import POPGymTask, below
from lifelong.envs.render import GREY, board


@dataclass(frozen=True)
class MineSweeperState:
    """`mines` int64 [B, mines]: their cells; `viewed` bool [B, cells]: cells that were opened; `near` int64 [B]: mines
    in and around the last one; `opened` and `step` int64 [B]."""

    mines: Tensor
    viewed: Tensor
    near: Tensor
    opened: Tensor
    step: Tensor


class MineSweeper(POPGymTask):
    """2, 6 or 10 mines under 4 x 4, 6 x 6 or 8 x 8 cells, of which n have none.

    Observation: how many mines lie in and around the cell that was opened last, one-hot float32 [B, numbers]; the agent
    needs its last action besides. Actions: the cells, row after row (POPGym's are pairs of row and column). A new cell
    gives +1/n, one that is open -0.5 / (n - 2), a mine -0.5 - 1/n and the end. It ends, too, when all cells are open
    and after n steps.
    """

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"size": 4, "mines": 2, "score": (-0.22, 1.0)},
        "medium": {"size": 6, "mines": 6, "score": (-0.4, 1.0)},
        "hard": {"size": 8, "mines": 10, "score": (-0.44, 1.0)},
    }

    def arrange(self, size: int, mines: int) -> None:
        """Such a board."""
        self.size, self.cells, self.mines, self.free = size, size * size, mines, size * size - mines
        self.categories, self.actions = (min(mines + 1, 10),), self.cells

    def draw_state(self) -> MineSweeperState:
        """Mines in cells that differ (Floyd's algorithm)."""
        unit, mines = self.unit(self.mines), self.zeros(0)
        for i in range(self.mines):
            last = self.cells - self.mines + i
            cell = below(unit[:, i : i + 1], last + 1)
            taken = (mines == cell).any(1, keepdim=True) if i else torch.zeros_like(cell, dtype=torch.bool)
            mines = torch.cat((mines, torch.where(taken, last, cell)), 1)
        none = self.zeros()
        return MineSweeperState(mines, self.zeros(self.cells, dtype=torch.bool), none, none, none)

    def advance(
        self, state: MineSweeperState, action: Tensor
    ) -> tuple[MineSweeperState, Tensor, Tensor, dict[str, Tensor]]:
        """Open a cell."""
        place, size = action.unsqueeze(1), self.size
        mine = (state.mines == place).any(1)
        known = state.viewed.gather(1, place).squeeze(1)
        new = ~mine & ~known
        dy, dx = (state.mines // size - place // size).abs(), (state.mines % size - place % size).abs()
        near = ((dy <= 1) & (dx <= 1)).sum(1)
        opened, step = state.opened + new.long(), state.step + 1
        reward = torch.where(new, 1.0 / self.free, torch.where(mine, -0.5 - 1.0 / self.free, -0.5 / (self.free - 2)))
        over = mine | (opened == self.free) | (step >= self.free)
        cell = torch.arange(self.cells, device=self.device)
        viewed = state.viewed | (new.unsqueeze(1) & (cell == place))
        return MineSweeperState(state.mines, viewed, near, opened, step), reward, over, {}

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The board: opened cells with the number of mines near, and where the mines are."""
        state, size = state or self.state, self.size
        mines = torch.zeros(self.cells, dtype=torch.long, device=self.device).index_fill_(0, state.mines[index], 1)
        near = torch.nn.functional.avg_pool2d(mines.view(1, size, size).float(), 3, 1, 1)[0] * 9
        values = torch.where(state.viewed[index], near.round().long().flatten() + 2, mines).view(size, size)
        return board(
            values.cpu().numpy(), [GREY, (150, 90, 90), *[(235, 238, 242)] * 9], ["", "x", *map(str, range(9))]
        )

    def shown(self, state: MineSweeperState) -> Tensor:
        """How many mines are near."""
        return state.near.unsqueeze(1)
