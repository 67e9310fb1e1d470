"""Asterix: gather gold and keep away from enemies.

Source: MinAtar (see `envs.arcade.minatar`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.arcade.minatar import DOWN, LEFT, RIGHT, SIZE, UP, MinAtarGame, moved, onward
from lifelong.envs.base import Param

RAMP, SPAWN, MOVE, ROWS = 100, 10, 5, 8


@dataclass(frozen=True)
class AsterixState:
    """Of the player `x` and `y` int64 [B]; of what may be in each of the eight rows 1 to 8 `there`, `right` and `gold`
    bool [B, 8] and `at` int64 [B, 8]; timers and speeds int64 [B]; see `MinAtarGame` for the rest."""

    x: Tensor
    y: Tensor
    there: Tensor
    right: Tensor
    gold: Tensor
    at: Tensor
    spawn_speed: Tensor
    spawn_timer: Tensor
    move_speed: Tensor
    move_timer: Tensor
    ramp_timer: Tensor
    ramp: Tensor
    last: Tensor
    luck: Tensor


class Asterix(MinAtarGame):
    """Gold gives 1, an enemy ends the game; they come from the sides, ever faster unless `steady`."""

    PARAMS: ClassVar[dict[str, Param]] = {
        **MinAtarGame.PARAMS,
        "steady": Param(0, 0, 1, "1: the game does not become faster", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.5, 16.0)
    CHANNELS: ClassVar[tuple[str, ...]] = ("player", "enemy", "trail", "gold")

    def draw_state(self) -> AsterixState:
        """The player in the middle, nothing else."""
        none, no, zero = self.zeros(ROWS, dtype=torch.int64), self.zeros(ROWS, dtype=torch.bool), self.zeros()
        return AsterixState(
            zero + 5, zero + 5, no, no, no, none, zero + SPAWN, zero + SPAWN, zero + MOVE, zero + MOVE, zero + RAMP,
            zero, zero, self.unit(),
        )  # fmt: skip

    def play(self, s: Any, action: Tensor) -> tuple[AsterixState, Tensor, Tensor]:
        s = self._spawn(s)
        x = (s.x + moved(action, LEFT, RIGHT)).clamp(0, SIZE - 1)
        y = (s.y + moved(action, UP, DOWN)).clamp(1, SIZE - 2)
        rows = torch.arange(1, ROWS + 1, device=self.device)
        mine = rows == y.unsqueeze(1)
        met = s.there & mine & (s.at == x.unsqueeze(1))
        over, reward = (met & ~s.gold).any(1), (met & s.gold).sum(1)
        there = s.there & ~(met & s.gold)
        moves = s.move_timer == 0
        at = s.at + onward(s.right) * (moves.unsqueeze(1) & there).long()
        there = there & (at >= 0) & (at < SIZE)
        met = there & mine & (at == x.unsqueeze(1)) & moves.unsqueeze(1)
        over, reward = over | (met & ~s.gold).any(1), reward + (met & s.gold).sum(1)
        there = there & ~(met & s.gold)
        following = replace(
            s,
            x=x,
            y=y,
            there=there,
            at=at,
            spawn_timer=s.spawn_timer - 1,
            move_timer=torch.where(moves, s.move_speed, s.move_timer) - 1,
        )
        return self._ramped(following), reward, over

    def _spawn(self, s: AsterixState) -> AsterixState:
        unit = self.unit(3)
        due = s.spawn_timer == 0
        free = ~s.there
        right, gold = unit[:, 0] < 1 / 2, unit[:, 1] < 1 / 3
        place = (unit[:, 2] * free.sum(1)).long()
        new = free & (free.long().cumsum(1) == place.unsqueeze(1) + 1) & due.unsqueeze(1)
        return replace(
            s,
            there=s.there | new,
            right=torch.where(new, right.unsqueeze(1), s.right),
            gold=torch.where(new, gold.unsqueeze(1), s.gold),
            at=torch.where(new, torch.where(right, 0, SIZE - 1).unsqueeze(1), s.at),
            spawn_timer=torch.where(due, s.spawn_speed, s.spawn_timer),
        )

    def _ramped(self, s: AsterixState) -> AsterixState:
        ramps = (self.params["steady"] == 0) & ((s.spawn_speed > 1) | (s.move_speed > 1))
        faster = ramps & (s.ramp_timer < 0)
        return replace(
            s,
            move_speed=s.move_speed - (faster & (s.move_speed > 1) & (s.ramp % 2 == 1)).long(),
            spawn_speed=s.spawn_speed - (faster & (s.spawn_speed > 1)).long(),
            ramp=s.ramp + faster.long(),
            ramp_timer=torch.where(faster, RAMP, s.ramp_timer - ramps.long()),
        )

    def picture(self, s: Any) -> Mapping[str, Tensor]:
        return {
            "player": self.cell(s.y, s.x),
            "enemy": self.lanes(s.at, s.there & ~s.gold),
            "trail": self.lanes(s.at - onward(s.right), s.there),
            "gold": self.lanes(s.at, s.there & s.gold),
        }
