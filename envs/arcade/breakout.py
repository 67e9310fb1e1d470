"""Breakout: break bricks with a ball that must not fall.

Source: MinAtar (see `envs.arcade.minatar`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.arcade.minatar import LEFT, RIGHT, SIZE, MinAtarGame, moved

ROWS = 3  # of bricks, below the uppermost row


@dataclass(frozen=True)
class BreakoutState:
    """`paddle` int64 [B]; of the ball `x`, `y`, `last_x`, `last_y` and `way` int64 [B], 0 up left, 1 up right, 2 down
    right, 3 down left; `bricks` bool [B, 3, 10]; `strike` bool [B]: it was in a brick; see `MinAtarGame` for the
    rest."""

    paddle: Tensor
    x: Tensor
    y: Tensor
    last_x: Tensor
    last_y: Tensor
    way: Tensor
    bricks: Tensor
    strike: Tensor
    last: Tensor
    luck: Tensor


class Breakout(MinAtarGame):
    """A brick gives 1, and when none is left they come back; the game ends when the ball falls beside the paddle."""

    SCORE: ClassVar[tuple[float, float]] = (0.5, 10.0)
    CHANNELS: ClassVar[tuple[str, ...]] = ("paddle", "ball", "trail", "brick")

    def draw_state(self) -> BreakoutState:
        """The ball at either side, on its way down."""
        unit = self.unit(2)
        right, zero = (unit[:, 0] * 2).long(), self.zeros()
        x, y = right * (SIZE - 1), zero + 3
        whole = self.zeros(ROWS, SIZE, dtype=torch.bool) | True
        no = self.zeros(dtype=torch.bool)
        return BreakoutState(zero + 4, x, y, x, y, right + 2, whole, no, zero, unit[:, 1])

    def play(self, s: Any, action: Tensor) -> tuple[BreakoutState, Tensor, Tensor]:
        paddle = (s.paddle + moved(action, LEFT, RIGHT)).clamp(0, SIZE - 1)
        side = torch.where((s.way == 1) | (s.way == 2), 1, -1)
        x, y = s.x + side, s.y + torch.where(s.way >= 2, 1, -1)
        out = (x < 0) | (x >= SIZE)
        x, way = x.clamp(0, SIZE - 1), torch.where(out, s.way ^ 1, s.way)
        above = y < 0
        place = ((y - 1).clamp(0, ROWS - 1) * SIZE + x).unsqueeze(1)
        brick = ~above & (y >= 1) & (y <= ROWS) & s.bricks.flatten(1).gather(1, place).squeeze(1)
        broken = brick & ~s.strike
        low = y == SIZE - 1
        empty = low & ~s.bricks.flatten(1).any(1)
        flat, edge = low & (s.x == paddle), low & (s.x != paddle) & (x == paddle)
        back = broken | flat | edge
        way = torch.where(above | broken | flat, 3 - way, torch.where(edge, way ^ 2, way))
        hit = broken.unsqueeze(1) & (torch.arange(ROWS * SIZE, device=self.device) == place)
        bricks = (s.bricks & ~hit.view(-1, ROWS, SIZE)) | empty.view(-1, 1, 1)
        following = BreakoutState(
            paddle=paddle,
            x=x,
            y=torch.where(back, s.y, y.clamp(min=0)),
            last_x=s.x,
            last_y=s.y,
            way=way,
            bricks=bricks,
            strike=brick,
            last=s.last,
            luck=s.luck,
        )
        return following, broken.long(), low & ~flat & ~edge

    def picture(self, s: Any) -> Mapping[str, Tensor]:
        none = self.zeros(1, SIZE, dtype=torch.bool)
        below = self.zeros(SIZE - ROWS - 1, SIZE, dtype=torch.bool)
        return {
            "paddle": self.cell(torch.full_like(s.paddle, SIZE - 1), s.paddle),
            "ball": self.cell(s.y, s.x),
            "trail": self.cell(s.last_y, s.last_x),
            "brick": torch.cat((none, s.bricks, below), 1),
        }
