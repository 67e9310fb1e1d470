"""Freeway: cross a road with eight lanes again and again.

Source: MinAtar (see `envs.arcade.minatar`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.arcade.minatar import DOWN, SIZE, UP, MinAtarGame, moved

LANES, PAUSE, LIMIT, COLUMN = 8, 3, 2500, 4


@dataclass(frozen=True)
class FreewayState:
    """`y` int64 [B] of the chicken in column 4; of the cars in rows 1 to 8 `at`, `timer` and `speed` int64 [B, 8], a
    speed being the frames between two moves, with the sign of the way; `move_timer` and `left` int64 [B], frames; see
    `MinAtarGame` for the rest."""

    y: Tensor
    at: Tensor
    timer: Tensor
    speed: Tensor
    move_timer: Tensor
    left: Tensor
    last: Tensor
    luck: Tensor


class Freeway(MinAtarGame):
    """The other side gives 1, and the cars change their speeds; a car throws the chicken back. 2501 frames."""

    SCORE: ClassVar[tuple[float, float]] = (0.2, 50.0)
    CHANNELS: ClassVar[tuple[str, ...]] = ("chicken", "car", "speed1", "speed2", "speed3", "speed4", "speed5")

    def draw_state(self) -> FreewayState:
        """The chicken at the bottom, cars at the left."""
        zero, speed = self.zeros(), self._speeds()
        none = self.zeros(LANES)
        return FreewayState(zero + 9, none, speed.abs(), speed, zero + PAUSE, zero + LIMIT, zero, self.unit())

    def play(self, s: Any, action: Tensor) -> tuple[FreewayState, Tensor, Tensor]:
        goes = (s.move_timer == 0) & ((action == UP) | (action == DOWN))
        y = torch.where(goes, s.y + moved(action, UP, DOWN), s.y).clamp(0, SIZE - 1)
        crossed = y == 0
        drawn = self._speeds()
        speed = torch.where(crossed.unsqueeze(1), drawn, s.speed)
        timer = torch.where(crossed.unsqueeze(1), drawn.abs(), s.timer)
        y = torch.where(crossed, SIZE - 1, y)
        lane = torch.arange(1, LANES + 1, device=self.device) == y.unsqueeze(1)
        moves = timer == 0
        at = s.at + torch.where(moves, speed.sign(), 0)
        at = torch.where(at < 0, SIZE - 1, torch.where(at >= SIZE, 0, at))
        hit = (lane & ((s.at == COLUMN) | (at == COLUMN))).any(1)
        move_timer = torch.where(goes, PAUSE, s.move_timer)
        following = FreewayState(
            y=torch.where(hit, SIZE - 1, y),
            at=at,
            timer=torch.where(moves, speed.abs(), timer - 1),
            speed=speed,
            move_timer=(move_timer - 1).clamp(min=0),
            left=s.left - 1,
            last=s.last,
            luck=s.luck,
        )
        return following, crossed.long(), following.left < 0

    def picture(self, s: Any) -> Mapping[str, Tensor]:
        behind = (s.at - s.speed.sign()) % SIZE
        return {
            "chicken": self.cell(s.y, torch.full_like(s.y, COLUMN)),
            "car": self.lanes(s.at, torch.ones_like(s.at, dtype=torch.bool)),
            **{f"speed{n}": self.lanes(behind, s.speed.abs() == n) for n in range(1, 6)},
        }

    def _speeds(self) -> Tensor:
        unit = self.unit(2, LANES)
        return (1 + (unit[:, 0] * 5).long()) * torch.where(unit[:, 1] < 0.5, -1, 1)
