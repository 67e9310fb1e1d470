"""RoomsKeyDoor: doors that only their keys open, and a hand that holds one key.

Source: `rooms_keys_doors_puzzle` of DeepMind Lab (Beattie et al. 2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.base import Param
from lifelong.envs.options import Range
from lifelong.envs.rooms.rooms import Rooms, RoomsState, below, changed, near, other_than
from lifelong.envs.rooms.textures import COLOURS, DOOR, GOAL, KEY, WALL
from lifelong.kernels import rays

SIZE = 9
#: x, y of the first cells of four rooms of 3 x 3 cells, clockwise, and of the doors from each to the next
CORNERS, DOORS = ((1, 1), (5, 1), (5, 5), (1, 5)), ((4, 2), (6, 4), (4, 6), (2, 4))
#: x, y of the corners of a room
PLACES = ((0.5, 0.5), (2.5, 0.5), (2.5, 2.5), (0.5, 2.5))
#: how near one comes to the middle of a door that one opens
REACH = 0.9
NONE = -1


@dataclass(frozen=True)
class KeyDoorState(RoomsState):
    """`colour` int64 [B, doors]: of the doors, in their order; `door` int64 [B, doors]: their cells; `held` int64 [B]:
    the colour of the key in the hand, -1: none. Things: the keys of the doors, keys that open nothing, the goal."""

    colour: Tensor
    door: Tensor
    held: Tensor


class RoomsKeyDoor(Rooms):
    """Up to four rooms, one after the other, with a door of a colour between each and the next. A room has the key of
    its door and, with `decoys`, one of a colour that opens nothing, in two of its corners. Touching a key takes it; the
    one that was held before is gone. Coming near to a door with its key opens it and uses the key up. Taking a key that
    opens a door, and opening one, give `bonus`; the apple in the last room gives 10 and ends the episode. The key that
    is held is seen as a patch of its colour in the lower left corner of the picture.

    Args:
        num_envs: number of copies B.
        rooms: 2, 3 or 4.
        decoys: whether there are keys that open nothing.
        **kwargs: see `Rooms`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        **Rooms.PARAMS,
        "bonus": Param(1.0, -100.0, 100.0, "what a key that opens a door, and opening it, give"),
    }
    SCORE: ClassVar[tuple[float, float]] = (1.3, 14.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 450

    def __init__(
        self, num_envs: int = 1, *, rooms: Annotated[int, Range(2, 4)] = 3, decoys: bool = True, **kwargs: Any
    ) -> None:
        self.doors, self.decoys = rooms - 1, decoys
        super().__init__(num_envs, **kwargs)
        grid = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
        half = torch.arange(SIZE) // 5
        quarter = torch.tensor([[0, 1], [3, 2]])[half.unsqueeze(1), half]
        walls = (WALL + 3 * quarter).to(torch.uint8)
        line = torch.arange(SIZE) % 4 == 0
        self.walls = torch.where(line.unsqueeze(1) | line, walls, grid).to(self.device)
        colours = torch.cat((torch.zeros(1, 3), torch.from_numpy(COLOURS))).to(torch.uint8)
        self.colours = colours.to(self.device)
        self.corners, self.places = (torch.tensor(t, device=self.device) for t in (CORNERS, PLACES))
        self.door_cells = torch.tensor([y * SIZE + x for x, y in DOORS], device=self.device)

    def draw_state(self) -> KeyDoorState:
        """Rooms in a row, clockwise or not, from any of the four on."""
        n, unit = self.doors, self.unit(3 + 6 + 2 * (self.doors + 1))
        start, onward = below(unit[:, :1], 4), 2 * below(unit[:, 1:2], 2) - 1
        heading = unit[:, 2] * 2 * math.pi
        colour = unit[:, 3:9].argsort(1)
        room = torch.arange(n + 1, device=self.device)
        quarter = torch.remainder(start + onward * room, 4)  # [B, rooms]
        corner = self.corners[quarter]
        between = torch.remainder(torch.where(onward > 0, quarter[:, :-1], quarter[:, 1:]), 4)
        door = self.door_cells[between]
        lock = (DOOR + colour[:, :n]).to(torch.uint8)
        grid = self.repeated(self.walls).flatten(1).scatter(1, door, lock).view(-1, SIZE, SIZE)
        place = below(unit[:, 9 : 10 + n], 4)
        at = corner + self.places[place]  # of the keys and of the goal [B, rooms, 2]
        kind = torch.cat((KEY + colour[:, :n], torch.full_like(start, GOAL)), 1)
        if self.decoys:
            wrong = corner[:, :n] + self.places[other_than(unit[:, 10 + n : 10 + 2 * n], 4, place[:, :n])]
            at = torch.cat((at[:, :n], wrong, at[:, n:]), 1)
            kind = torch.cat((kind[:, :n], KEY + colour[:, 3 : 3 + n], kind[:, n:]), 1)
        x, y = (corner[:, 0] + 1.5).unbind(1)
        there = torch.ones_like(kind, dtype=torch.bool)
        held = torch.full_like(start[:, 0], NONE)
        return KeyDoorState(
            grid, x, y, heading, at[..., 0], at[..., 1], kind, there, colour=colour[:, :n], door=door, held=held
        )

    def judge(self, state: Any) -> tuple[KeyDoorState, Tensor, Tensor]:
        """Take keys, open doors, reach the goal."""
        n = self.doors
        touched = near(state, state.thing_x, state.thing_y) & state.there
        keys, over = touched[:, :-1], touched[:, -1]
        taken = torch.where(keys, state.kind[:, :-1] - KEY, NONE).amax(1)
        held = torch.where(taken >= 0, taken, state.held)
        door_x, door_y = state.door % SIZE + 0.5, torch.div(state.door, SIZE, rounding_mode="floor") + 0.5
        closed = state.grid.flatten(1).gather(1, state.door) > 0
        opens = near(state, door_x, door_y, REACH) & closed & (state.colour == held.unsqueeze(1))
        lock = torch.where(closed & ~opens, DOOR + state.colour, 0).to(torch.uint8)
        bonus = self.params["bonus"] * (keys[:, :n].sum(1) + opens.sum(1))
        state = changed(
            state,
            grid=state.grid.flatten(1).scatter(1, state.door, lock).view_as(state.grid),
            there=state.there & ~touched,
            held=torch.where(opens.any(1), NONE, held),
        )
        return state, bonus + 10.0 * over, over

    def observe(self, state: Any) -> Tensor:
        """What is seen, and the key in the hand."""
        return self.with_key(rays.frames(self.camera, state), state)

    def observe_fresh(self, state: Any, done_B: Tensor, final_obs: Tensor) -> Tensor:
        """The same, drawn anew only where there is a new episode."""
        return self.with_key(rays.frames(self.camera, state, done_B, final_obs), state)

    def with_key(self, picture: Tensor, state: Any) -> Tensor:
        """The picture, with a patch of the colour of the key that is held."""
        high, wide = self.height // 6, self.width // 8
        patch = self.colours[state.held + 1].view(-1, 1, 1, 3)
        before = picture[:, -high:, :wide]
        picture[:, -high:, :wide] = torch.where((state.held >= 0).view(-1, 1, 1, 1), patch, before)
        return picture
