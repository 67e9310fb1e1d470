"""Seaquest: rescue divers with a submarine that needs air, among fish and enemy submarines.

Source: MinAtar (see `envs.arcade.minatar`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.arcade.minatar import DOWN, FIRE, LEFT, RIGHT, SIZE, UP, MinAtarGame, moved, onward
from lifelong.envs.base import Param

AIR, ENEMY_SPAWN, DIVER_SPAWN, MOVE, DIVER_MOVE, COOL_DOWN, ENEMY_SHOT, FULL = 200, 20, 30, 5, 5, 5, 10, 6
#: at most so many of each at once; bullets and divers cannot be more, enemies only after some twenty rescues
BULLETS, DIVERS, ENEMIES = 2, 3, 24
LATER = 1 << 40  # more than any number of enemies


@dataclass(frozen=True)
class SeaquestState:
    """`x`, `y` int64 [B] and `right` bool [B] of the submarine, `air` and `rescued` int64 [B]; things that move, each
    with `there` and `right` bool, `x`, `y` int64, all [B, n]: own bullets and divers, the oldest first, enemies, and
    the bullet that each of them shot; of divers and enemies the frames until they move, of enemies whether it is a
    submarine, how many came before, and the frames until it shoots; timers and speeds int64 [B]; see `MinAtarGame` for
    the rest."""

    x: Tensor
    y: Tensor
    right: Tensor
    air: Tensor
    rescued: Tensor
    surfaced: Tensor
    bullet_there: Tensor
    bullet_right: Tensor
    bullet_x: Tensor
    bullet_y: Tensor
    diver_there: Tensor
    diver_right: Tensor
    diver_x: Tensor
    diver_y: Tensor
    diver_timer: Tensor
    enemy_there: Tensor
    enemy_right: Tensor
    enemy_x: Tensor
    enemy_y: Tensor
    enemy_timer: Tensor
    enemy_shot: Tensor
    enemy_born: Tensor
    enemy_sub: Tensor
    bomb_there: Tensor
    bomb_right: Tensor
    bomb_x: Tensor
    bomb_y: Tensor
    spawn_speed: Tensor
    spawn_timer: Tensor
    diver_spawn: Tensor
    move_speed: Tensor
    shot_timer: Tensor
    ramp: Tensor
    born: Tensor
    last: Tensor
    luck: Tensor


class Seaquest(MinAtarGame):
    """Whatever a bullet hits gives 1; surfacing with six divers gives up to 10, with one or more new air; without any,
    or without air, or hit, the game ends. After each surfacing enemies come faster unless `steady`.

    As in the package, the count of divers is -1 after six of them were brought up, so that the next time it takes
    seven. Twenty-four enemies are kept at once; the package has no limit, which matters only when they come at every
    frame.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        **MinAtarGame.PARAMS,
        "steady": Param(0, 0, 1, "1: the game does not become faster", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.1, 20.0)
    CHANNELS: ClassVar[tuple[str, ...]] = (
        "sub_front", "sub_back", "friendly_bullet", "trail", "enemy_bullet", "enemy_fish", "enemy_sub", "oxygen_guage",
        "diver_guage", "diver",
    )  # fmt: skip

    def draw_state(self) -> SeaquestState:
        """The submarine at the surface, nothing else."""
        zero, no = self.zeros(), self.zeros(dtype=torch.bool)
        things: dict[str, Tensor] = {}
        for kind, count in {"bullet": BULLETS, "diver": DIVERS, "enemy": ENEMIES, "bomb": ENEMIES}.items():
            things |= {f"{kind}_{name}": self.zeros(count, dtype=torch.bool) for name in ("there", "right")}
            things |= {f"{kind}_{name}": self.zeros(count) for name in ("x", "y")}
        none = self.zeros(ENEMIES)
        return SeaquestState(
            **things,
            x=zero + 5,
            y=zero,
            right=no,
            air=zero + AIR,
            rescued=zero,
            surfaced=~no,
            diver_timer=self.zeros(DIVERS),
            enemy_timer=none,
            enemy_shot=none,
            enemy_born=none,
            enemy_sub=self.zeros(ENEMIES, dtype=torch.bool),
            spawn_speed=zero + ENEMY_SPAWN,
            spawn_timer=zero + ENEMY_SPAWN,
            diver_spawn=zero + DIVER_SPAWN,
            move_speed=zero + MOVE,
            shot_timer=zero,
            ramp=zero,
            born=zero,
            last=zero,
            luck=self.unit(),
        )

    def play(self, s: Any, action: Tensor) -> tuple[SeaquestState, Tensor, Tensor]:
        s = self._spawned(s)
        s = self._steered(s, action)
        s, shot = self._bullets(s)
        s = self._divers(s)
        s, struck, over = self._enemies(s)
        s, air, drowned = self._surface(s)
        return s, shot + struck + air, over | drowned

    # ---- in the order of the package -----------------------------------------------------------------------------

    def _spawned(self, s: SeaquestState) -> SeaquestState:
        """Enemies and divers come in from the sides, an enemy in no row in which others swim the other way."""
        unit, s = self.unit(5), _in_order("diver", s, DIVERS)
        due, diver_due = s.spawn_timer == 0, s.diver_spawn == 0
        right, sub = unit[:, 0] < 1 / 2, unit[:, 1] < 1 / 3
        y = 1 + (unit[:, 2] * 8).long()
        against = s.enemy_there & (s.enemy_y == y.unsqueeze(1)) & (s.enemy_right != right.unsqueeze(1))
        comes = due & ~against.any(1)
        enemy, diver = _first_free(s.enemy_there, comes), _first_free(s.diver_there, diver_due)
        diver_right, diver_y = unit[:, 3] < 1 / 2, 1 + (unit[:, 4] * 8).long()
        s = _put("enemy", s, enemy, right=right, x=_side(right), y=y, timer=s.move_speed, born=s.born, sub=sub)
        s = _put("diver", s, diver, right=diver_right, x=_side(diver_right), y=diver_y)
        return replace(
            s,
            diver_timer=s.diver_timer.masked_fill(diver, DIVER_MOVE),
            enemy_shot=s.enemy_shot.masked_fill(enemy, ENEMY_SHOT),
            born=s.born + comes.long(),
            spawn_timer=torch.where(due, s.spawn_speed, s.spawn_timer),
            diver_spawn=torch.where(diver_due, DIVER_SPAWN, s.diver_spawn),
        )

    def _steered(self, s: SeaquestState, action: Tensor) -> SeaquestState:
        """The submarine shoots or moves."""
        fires = (action == FIRE) & (s.shot_timer == 0)
        s = _in_order("bullet", s, BULLETS)
        s = _put("bullet", s, _first_free(s.bullet_there, fires), right=s.right, x=s.x, y=s.y)
        return replace(
            s,
            shot_timer=torch.where(fires, COOL_DOWN, s.shot_timer),
            x=(s.x + moved(action, LEFT, RIGHT)).clamp(0, SIZE - 1),
            y=(s.y + moved(action, UP, DOWN)).clamp(0, SIZE - 2),
            right=(s.right | (action == RIGHT)) & (action != LEFT),
        )

    def _bullets(self, s: SeaquestState) -> tuple[SeaquestState, Tensor]:
        """Own bullets move, the last one first; each takes away the oldest fish in its cell, or else submarine."""
        s = replace(s, bullet_x=s.bullet_x + onward(s.bullet_right))
        s = replace(s, bullet_there=s.bullet_there & _inside(s.bullet_x))
        order = s.enemy_born + s.enemy_sub.long() * LATER
        return _struck(s, s.enemy_there, order, reversed(range(BULLETS)))

    def _divers(self, s: SeaquestState) -> SeaquestState:
        """Divers are taken on board, up to six, or move; the last one first."""
        due = s.diver_timer == 0
        x = s.diver_x + torch.where(due, onward(s.diver_right), 0)
        rescued, left = s.rescued, []
        for i in reversed(range(DIVERS)):
            mine = s.diver_there[:, i] & (s.diver_y[:, i] == s.y) & (rescued < FULL)
            taken = mine & ((s.diver_x[:, i] == s.x) | (x[:, i] == s.x))
            rescued = rescued + taken.long()
            left.append(s.diver_there[:, i] & ~taken)
        timer = torch.where(due, DIVER_MOVE, s.diver_timer - 1)
        there = torch.stack(left[::-1], 1) & _inside(x)
        return replace(s, rescued=rescued, diver_x=x, diver_timer=timer, diver_there=there)

    def _enemies(self, s: SeaquestState) -> tuple[SeaquestState, Tensor, Tensor]:
        """Enemies move when it is their turn, into the submarine or into bullets, submarines first and the newest one
        first; submarines shoot, also those that were struck just now, and their bullets move."""
        there, here, row = s.enemy_there, s.x.unsqueeze(1), s.y.unsqueeze(1)
        due = s.enemy_timer == 0
        x = s.enemy_x + torch.where(due, onward(s.enemy_right), 0)
        met = there & (s.enemy_y == row) & ((s.enemy_x == here) | (x == here))
        shoots = there & s.enemy_sub & (s.enemy_shot == 0)
        s = replace(
            s,
            enemy_x=x,
            enemy_there=there & _inside(x),
            enemy_timer=torch.where(due, s.move_speed.unsqueeze(1), s.enemy_timer - 1),
            enemy_shot=torch.where(s.enemy_shot == 0, ENEMY_SHOT, s.enemy_shot - 1),
        )
        order = -s.enemy_born - s.enemy_sub.long() * LATER
        s, struck = _struck(s, s.enemy_there & due & ~((s.enemy_y == row) & (x == here)), order, range(BULLETS))
        s = _put("bomb", s, shoots, right=s.enemy_right, x=s.enemy_x, y=s.enemy_y)
        flown = s.bomb_x + onward(s.bomb_right)
        bombed = s.bomb_there & (s.bomb_y == row) & ((s.bomb_x == here) | (flown == here))
        return replace(s, bomb_x=flown, bomb_there=s.bomb_there & _inside(flown)), struck, (met | bombed).any(1)

    def _surface(self, s: SeaquestState) -> tuple[SeaquestState, Tensor, Tensor]:
        """Timers, air, and what happens at the surface."""
        below, full = s.y > 0, s.rescued == FULL
        arrives = ~below & ~s.surfaced
        up, drowned = arrives & (s.rescued != 0), (s.air <= 0) | (arrives & (s.rescued == 0))
        reward = torch.where(up & full, s.air * 10 // AIR, 0)
        ramps = up & (self.params["steady"] == 0) & ((s.spawn_speed > 1) | (s.move_speed > 2))
        following = replace(
            s,
            spawn_timer=(s.spawn_timer - 1).clamp(min=0),
            diver_spawn=(s.diver_spawn - 1).clamp(min=0),
            shot_timer=(s.shot_timer - 1).clamp(min=0),
            surfaced=~below & (s.surfaced | up),
            air=torch.where(up, AIR, s.air - below.long()),
            rescued=torch.where(up, torch.where(full, -1, s.rescued - 1), s.rescued),
            move_speed=s.move_speed - (ramps & (s.move_speed > 2) & (s.ramp % 2 == 1)).long(),
            spawn_speed=s.spawn_speed - (ramps & (s.spawn_speed > 1)).long(),
            ramp=s.ramp + ramps.long(),
        )
        return following, reward, drowned

    def picture(self, s: Any) -> Mapping[str, Tensor]:
        columns, bottom = self.axis(), (self.axis() == SIZE - 1).view(-1, 1)
        air = columns < (s.air.clamp(min=0) * 10 // AIR).unsqueeze(1)
        divers = (columns >= 9 - s.rescued.unsqueeze(1)) & (columns < 9)
        behind = s.enemy_x - onward(s.enemy_right)
        trails = self.things(s.diver_y, s.diver_x - onward(s.diver_right), s.diver_there)
        return {
            "sub_front": self.cell(s.y, s.x),
            "sub_back": self.cell(s.y, s.x - onward(s.right)),
            "friendly_bullet": self.things(s.bullet_y, s.bullet_x, s.bullet_there),
            "trail": trails | self.things(s.enemy_y, behind, s.enemy_there),
            "enemy_bullet": self.things(s.bomb_y, s.bomb_x, s.bomb_there),
            "enemy_fish": self.things(s.enemy_y, s.enemy_x, s.enemy_there & ~s.enemy_sub),
            "enemy_sub": self.things(s.enemy_y, s.enemy_x, s.enemy_there & s.enemy_sub),
            "oxygen_guage": air.unsqueeze(1) & bottom,
            "diver_guage": divers.unsqueeze(1) & bottom,
            "diver": self.things(s.diver_y, s.diver_x, s.diver_there),
        }


def _inside(x: Tensor) -> Tensor:
    return (x >= 0) & (x < SIZE)


def _side(right: Tensor) -> Tensor:
    """The column in which something begins that goes to the right, or not."""
    return torch.where(right, 0, SIZE - 1)


def _first_free(there: Tensor, wanted: Tensor) -> Tensor:
    """The first free place where one is wanted, bool [B, n]."""
    free = ~there
    return free & (free.long().cumsum(1) == 1) & wanted.unsqueeze(1)


def _struck(s: SeaquestState, exposed: Tensor, order: Tensor, bullets: Iterable[int]) -> tuple[SeaquestState, Tensor]:
    """Bullets, one after the other, and the first exposed enemy in the cell of each are gone; how many, int64 [B]."""
    there, flies, struck = s.enemy_there, list(s.bullet_there.unbind(1)), torch.zeros_like(s.x)
    for i in bullets:
        same = (s.enemy_x == s.bullet_x[:, i : i + 1]) & (s.enemy_y == s.bullet_y[:, i : i + 1])
        same = same & exposed & there & flies[i].unsqueeze(1)
        place = torch.where(same, order, 4 * LATER)
        first = same & (place == place.amin(1, keepdim=True))
        there, hit = there & ~first, same.any(1)
        struck, flies[i] = struck + hit.long(), flies[i] & ~hit
    return replace(s, enemy_there=there, bullet_there=torch.stack(flies, 1)), struck


def _put(kind: str, s: SeaquestState, new: Tensor, **values: Tensor) -> SeaquestState:
    """One more of a kind in each place that `new` says, with such values, [B] or [B, n]."""
    changed = {f"{kind}_there": getattr(s, f"{kind}_there") | new}
    for name, value in values.items():
        wide = value if value.dim() == 2 else value.unsqueeze(1)
        changed[f"{kind}_{name}"] = torch.where(new, wide, getattr(s, f"{kind}_{name}"))
    return replace(s, **changed)


def _in_order(kind: str, s: SeaquestState, count: int) -> SeaquestState:
    """Those that are there in the first places, in the order in which they came."""
    there = getattr(s, f"{kind}_there")
    rank = there.long().cumsum(1)
    takes = [there & (rank == place + 1) for place in range(count)]
    changed = {f"{kind}_there": torch.arange(count, device=there.device) < rank[:, -1:]}
    for name in ("right", "x", "y", "timer"):
        if hasattr(s, f"{kind}_{name}"):
            old = getattr(s, f"{kind}_{name}")
            new = [torch.where(take, old.long(), 0).sum(1) for take in takes]
            changed[f"{kind}_{name}"] = torch.stack(new, 1).to(old.dtype)
    return replace(s, **changed)
