"""RoomsSelectNonMatching: see a thing, go to the next room, take the other one.

Source: `rooms_select_nonmatching_object` of DeepMind Lab (Beattie et al. 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.rooms.rooms import NORTH, Rooms, RoomsState, below, near, other_than, put
from lifelong.envs.rooms.textures import OBJECTS, PAD, THING, WALL

SIZE = 9
#: x, y: where one comes into the first and the second room, the thing that is shown, plates, things to choose from
ENTRIES = ((2.5, 3.5), (6.5, 3.5))
SHOWN, PADS, CHOICES = (2.5, 1.4), ((1.5, 2.2), (3.5, 2.2)), ((5.6, 1.6), (7.4, 1.6))


@dataclass(frozen=True)
class SelectNonMatchingState(RoomsState):
    """`second` bool [B]: in the second room; `match` int64 [B]: which of the two things there was shown. Things: the
    one that is shown, the plate, the two things to choose from."""

    second: Tensor
    match: Tensor


class RoomsSelectNonMatching(Rooms):
    """Two rooms. In the first a thing is shown, and a plate lies to the left or to the right: stepping on it gives 1
    and leads to the second room, where that thing and another one stand. Touching the other one gives 10, touching the
    one that was shown takes 10, and both lead back to the first room. The thing that is shown is the same in all of an
    episode; the other one, the sides and the plate are drawn again.
    """

    SCORE: ClassVar[tuple[float, float]] = (0.9, 45.0)
    MAX_EPISODE_STEPS: ClassVar[int] = 120

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        grid = torch.full((SIZE, SIZE), WALL + 2, dtype=torch.uint8)
        grid[:, SIZE // 2 :] = WALL + 7
        grid[1:4, 1:4] = grid[1:4, 5:8] = 0
        self.rooms = grid.to(self.device)
        self.entries, self.pads = (torch.tensor(places, device=self.device) for places in (ENTRIES, PADS))
        shown = torch.tensor([SHOWN, (0.0, 0.0), *CHOICES], device=self.device)
        self.shown_x, self.shown_y = shown.unbind(1)

    def draw_state(self) -> SelectNonMatchingState:
        """Something that is shown."""
        unit = self.unit(4)
        grid, first = self.repeated(self.rooms), torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        x, y, heading = self.entry(first)
        kind, match, pad_x = self.trial(unit, THING + below(unit[:, 3], OBJECTS))
        thing_x, thing_y = self.things(pad_x)
        there = torch.ones_like(kind, dtype=torch.bool)
        return SelectNonMatchingState(grid, x, y, heading, thing_x, thing_y, kind, there, second=first, match=match)

    def entry(self, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position and heading of who comes into a room."""
        x, y = self.entries[second.long()].unbind(1)
        return x, y, torch.full_like(x, NORTH)

    def trial(self, unit: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Kinds of the four things [B, 4], which of the last two is the one that is shown, and where the plate is."""
        match, side = below(unit[:, 0], 2), below(unit[:, 1], 2)
        other = THING + other_than(unit[:, 2], OBJECTS, shown - THING)
        left, right = torch.where(match == 0, shown, other), torch.where(match == 0, other, shown)
        return torch.stack((shown, torch.full_like(shown, PAD), left, right), 1), match, self.pads[side, 0]

    def things(self, pad_x: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of the four things."""
        x, y = self.repeated(self.shown_x), self.repeated(self.shown_y)
        pad_y = torch.full_like(pad_x, PADS[0][1])
        return (torch.cat((each[:, :1], pad.unsqueeze(1), each[:, 2:]), 1) for each, pad in ((x, pad_x), (y, pad_y)))  # type: ignore[return-value]

    def judge(self, state: Any) -> tuple[SelectNonMatchingState, Tensor, Tensor]:
        """Whether the plate or one of the two things was touched."""
        touched = near(state, state.thing_x, state.thing_y)
        plate, left, right = touched[:, 1], touched[:, 2], touched[:, 3]
        chosen = left | right
        matching = torch.where(state.match == 0, left, right)
        reward = 1.0 * plate + torch.where(chosen, torch.where(matching, -10.0, 10.0), 0.0)
        second = (state.second | plate) & ~chosen
        kind, match, pad_x = self.trial(self.unit(3), state.kind[:, 0])
        thing_x, _ = self.things(pad_x)
        moved, again = plate | chosen, chosen.unsqueeze(1)
        state = put(
            state,
            moved,
            self.entry(second),
            kind=torch.where(again, kind, state.kind),
            match=torch.where(chosen, match, state.match),
            thing_x=torch.where(again, thing_x, state.thing_x),
            second=second,
        )
        return state, reward, torch.zeros_like(chosen)
