"""SpaceInvaders: shoot at aliens that come nearer and shoot back.

Source: MinAtar (see `envs.arcade.minatar`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.arcade.minatar import FIRE, LEFT, RIGHT, SIZE, MinAtarGame, moved
from lifelong.envs.base import Param

COOL_DOWN, MOVE, SHOT = 5, 12, 10
BOTTOM = SIZE - 1
#: the aliens at first: columns 2 to 7 of rows 0 to 3, a row being a number whose bit x says whether one is there
WAVE, WAVE_ROWS = 0b0011111100, 4


@dataclass(frozen=True)
class SpaceInvadersState:
    """`x` int64 [B] of the cannon; `aliens`, `shots` (own) and `bombs` int64 [B, 10]: a number a row, whose bit x says
    whether one is there; `way` int64 [B] of the aliens, -1 or 1; timers and the moving interval int64 [B]; see
    `MinAtarGame` for the rest."""

    x: Tensor
    aliens: Tensor
    shots: Tensor
    bombs: Tensor
    way: Tensor
    interval: Tensor
    move_timer: Tensor
    bomb_timer: Tensor
    shot_timer: Tensor
    last: Tensor
    luck: Tensor


class SpaceInvaders(MinAtarGame):
    """An alien gives 1, and when none is left the next wave comes, faster unless `steady`; a bomb or an alien ends
    it."""

    PARAMS: ClassVar[dict[str, Param]] = {
        **MinAtarGame.PARAMS,
        "steady": Param(0, 0, 1, "1: the game does not become faster", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (3.0, 60.0)
    CHANNELS: ClassVar[tuple[str, ...]] = (
        "cannon", "alien", "alien_left", "alien_right", "friendly_bullet", "enemy_bullet",
    )  # fmt: skip

    def draw_state(self) -> SpaceInvadersState:
        """The first wave."""
        zero, none = self.zeros(), self.zeros(SIZE)
        return SpaceInvadersState(
            zero + 5, none + self._wave(), none, none, zero - 1, zero + MOVE, zero + MOVE, zero + SHOT, zero, zero,
            self.unit(),
        )  # fmt: skip

    def play(self, s: Any, action: Tensor) -> tuple[SpaceInvadersState, Tensor, Tensor]:
        rows = self.axis()
        fires = (action == FIRE) & (s.shot_timer == 0)
        shots = s.shots | torch.where(fires.unsqueeze(1) & (rows == BOTTOM), _bit(s.x).unsqueeze(1), 0)
        x = (s.x + moved(action, LEFT, RIGHT)).clamp(0, SIZE - 1)
        here = _bit(x)
        none = self.zeros(1)
        shots = torch.cat((shots[:, 1:], none), 1)
        bombs = torch.cat((none, s.bombs[:, :-1]), 1)
        over = ((bombs[:, BOTTOM] | s.aliens[:, BOTTOM]) & here) > 0
        # the aliens
        moves = s.move_timer == 0
        columns = _any(s.aliens)
        turns = moves & (columns & torch.where(s.way < 0, 1, 1 << BOTTOM) > 0)
        beside = torch.where((s.way < 0).unsqueeze(1), s.aliens >> 1, (s.aliens << 1) & (1 << SIZE) - 1)
        aliens = torch.where(turns.unsqueeze(1), s.aliens.roll(1, 1), beside)
        aliens = torch.where(moves.unsqueeze(1), aliens, s.aliens)
        over = over | (turns & (s.aliens[:, BOTTOM] > 0)) | (moves & (aliens[:, BOTTOM] & here > 0))
        move_timer = torch.where(moves, torch.minimum(_count(s.aliens), s.interval), s.move_timer)
        # the nearest one shoots, its left neighbour if two are
        bombs_now = s.bomb_timer == 0
        distance = (rows - x.unsqueeze(1)).abs() * SIZE + rows
        nearest = torch.where((_any(aliens).unsqueeze(1) >> rows) & 1 > 0, distance, SIZE * SIZE * 2).amin(1) % SIZE
        lowest = torch.where((aliens >> nearest.unsqueeze(1)) & 1 > 0, rows, -1).amax(1)
        falls = bombs_now.unsqueeze(1) & (rows == lowest.unsqueeze(1))
        bombs = bombs | torch.where(falls, _bit(nearest).unsqueeze(1), 0)
        killed = aliens & shots
        aliens, shots = aliens & ~killed, shots & ~killed
        cleared = _any(aliens) == 0
        ramps = cleared & (s.interval > 6) & (self.params["steady"] == 0)
        following = SpaceInvadersState(
            x=x,
            aliens=torch.where(cleared.unsqueeze(1), self._wave(), aliens),
            shots=shots,
            bombs=bombs,
            way=torch.where(turns, -s.way, s.way),
            interval=s.interval - ramps.long(),
            move_timer=move_timer - 1,
            bomb_timer=torch.where(bombs_now, SHOT, s.bomb_timer) - 1,
            shot_timer=(torch.where(fires, COOL_DOWN, s.shot_timer) - 1).clamp(min=0),
            last=s.last,
            luck=s.luck,
        )
        return following, _count(killed), over

    def picture(self, s: Any) -> Mapping[str, Tensor]:
        left = (s.way < 0).unsqueeze(1)
        return {
            "cannon": self.cell(torch.full_like(s.x, BOTTOM), s.x),
            "alien": self.bits(s.aliens.unbind(1)),
            "alien_left": self.bits(torch.where(left, s.aliens, 0).unbind(1)),
            "alien_right": self.bits(torch.where(left, 0, s.aliens).unbind(1)),
            "friendly_bullet": self.bits(s.shots.unbind(1)),
            "enemy_bullet": self.bits(s.bombs.unbind(1)),
        }

    def _wave(self) -> Tensor:
        return torch.where(self.axis() < WAVE_ROWS, WAVE, 0)


def _bit(x: Tensor) -> Tensor:
    return torch.ones_like(x) << x


def _any(rows: Tensor) -> Tensor:
    """The bits that are set in some row, int64 [B]."""
    found = rows[:, 0]
    for row in rows.unbind(1)[1:]:
        found = found | row
    return found


def _count(rows: Tensor) -> Tensor:
    """Bits that are set, int64 [B]."""
    pairs = rows - ((rows >> 1) & 0b0101010101)
    fours = (pairs & 0b1100110011) + ((pairs >> 2) & 0b0000110011)
    return ((fours & 0b1111) + ((fours >> 4) & 0b1111) + (fours >> 8)).sum(1)
