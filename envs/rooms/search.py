"""Who knows everything: bounds to what an agent may find in rooms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lifelong.envs.rooms.explore_goal import RoomsExploreGoal
from lifelong.envs.rooms.key_door import RoomsKeyDoor
from lifelong.envs.rooms.rooms import FORWARD, FORWARD_LEFT, FORWARD_RIGHT, LEFT, RIGHT, Rooms
from lifelong.envs.rooms.select_non_matching import RoomsSelectNonMatching
from lifelong.envs.rooms.water_maze import RoomsWaterMaze

FAR = 1e4


def oracle(env: Rooms, state: Any) -> Tensor:
    """Actions int64 [B] of who knows where everything is and goes there by the shortest way.

    Args:
        env: one of the four tasks.
        state: its state.
    """
    x, y, blocked = target(env, state)
    return towards(env, state, *waypoint(state, x, y, blocked))


def target(env: Rooms, state: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x and y of where one should be next [B], and the cells that one cannot or should not enter, bool [B, S, S]."""
    blocked = state.grid > 0
    if isinstance(env, RoomsWaterMaze):
        return *env.middle(state.platform), blocked
    if isinstance(env, RoomsExploreGoal):
        return state.thing_x[:, 0], state.thing_y[:, 0], blocked
    if isinstance(env, RoomsSelectNonMatching):
        which = torch.where(state.second, 3 - state.match, 1).unsqueeze(1)
        return *(each.gather(1, which).squeeze(1) for each in (state.thing_x, state.thing_y)), blocked
    assert isinstance(env, RoomsKeyDoor)
    n, size = env.doors, state.grid.shape[1]
    closed = state.grid.flatten(1).gather(1, state.door) > 0
    first = closed.long().argmax(1, keepdim=True)
    door, colour = state.door.gather(1, first), state.colour.gather(1, first)
    holds = colour.squeeze(1) == state.held
    wanted = torch.where(closed.any(1), first.squeeze(1), state.kind.shape[1] - 1).unsqueeze(1)
    x, y = (each.gather(1, wanted).squeeze(1) for each in (state.thing_x, state.thing_y))
    at_door = closed.any(1) & holds
    x = torch.where(at_door, door.squeeze(1) % size + 0.5, x)
    y = torch.where(at_door, door.squeeze(1) // size + 0.5, y)
    decoys = slice(n, state.kind.shape[1] - 1)
    cells = state.thing_y[:, decoys].long() * size + state.thing_x[:, decoys].long()
    there = state.there[:, decoys].to(torch.uint8)
    bad = torch.zeros_like(state.grid).flatten(1).scatter(1, cells, there).view_as(state.grid) > 0
    return x, y, blocked | bad


def waypoint(state: Any, x: Tensor, y: Tensor, blocked: Tensor) -> tuple[Tensor, Tensor]:
    """The target, or the middle of the next cell on the way to it."""
    B, size, _ = blocked.shape
    here, there = (row.long() * size + column.long() for row, column in ((state.y, state.x), (y, x)))
    distance = torch.full((B, size * size), FAR, device=x.device).scatter(1, there.unsqueeze(1), 0.0)
    distance = distance.view(B, size, size)
    wall = FAR * blocked
    for _ in range(size * size // 2):  # no way is longer
        distance = torch.minimum(distance, torch.stack(around(distance)).amin(0) + 1 + wall)
    nearest = torch.stack(around(distance), 3).view(B, -1, 4)
    side = nearest.gather(1, here.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1).argmin(1)
    following = here + torch.tensor((size, -size, 1, -1), device=x.device)[side]
    arrived = here == there
    return torch.where(arrived, x, following % size + 0.5), torch.where(arrived, y, following // size + 0.5)


def around(distance: Tensor) -> list[Tensor]:
    """What lies below, above, to the right and to the left of every cell, [B, S, S] each."""
    wide = torch.nn.functional.pad(distance, (1, 1, 1, 1), value=FAR)
    return [wide[:, 2:, 1:-1], wide[:, :-2, 1:-1], wide[:, 1:-1, 2:], wide[:, 1:-1, :-2]]


def towards(env: Rooms, state: Any, x: Tensor, y: Tensor) -> Tensor:
    """Turn to a place and go there."""
    wanted = torch.atan2(y - state.y, x - state.x)
    error = torch.remainder(wanted - state.heading + math.pi, 2 * math.pi) - math.pi
    turn = torch.deg2rad(env.params["turn"])
    ahead, slow = error.abs() <= turn / 2, error.abs() > 2 * turn
    left = torch.where(slow, LEFT, FORWARD_LEFT)
    right = torch.where(slow, RIGHT, FORWARD_RIGHT)
    return torch.where(ahead, FORWARD, torch.where(error < 0, left, right))
