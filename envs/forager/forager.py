"""Forager: an endless world in which what is good to eat changes, and nothing says when.

Source: the rules of "NeverEndingRelearning" in Forager (2026, arXiv 2605.01131), written from its description.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range
from lifelong.envs.render import COLOURS, INK, enlarged

WIDTH, HEIGHT = 24, 15
#: the first columns of the two strips, and how wide they are
STRIPS, STRIP = (4, 16), 4
PLACES = STRIP * HEIGHT  # of one strip
NOTHING, BIG, SMALL = 0, 1, 2
EACH = PLACES // 4  # things of either kind in a strip
WALLS = WIDTH * HEIGHT // 15
LAYOUTS, LIFE, QUEUE = 256, 500, 24
#: left, right, up, down: y, x
MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))


@lru_cache(maxsize=1)
def layouts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Worlds to begin with.

    Returns:
        Walls bool [layouts, cells], things uint8 and their ages int64 [layouts, 2 strips * places], and a cell with
        neither for the agent, int64 [layouts].
    """
    rng = np.random.default_rng(0)
    walls = np.zeros((LAYOUTS, HEIGHT * WIDTH), bool)
    things = np.zeros((LAYOUTS, 2 * PLACES), np.uint8)
    ages = rng.integers(0, LIFE, (LAYOUTS, 2 * PLACES))
    start = np.zeros(LAYOUTS, np.int64)
    cell_of = cells().numpy()
    for i in range(LAYOUTS):
        walls[i, rng.permutation(HEIGHT * WIDTH)[:WALLS]] = True
        for strip in range(2):
            places = strip * PLACES + rng.permutation(PLACES)
            free = places[~walls[i, cell_of[places]]][: 2 * EACH]
            things[i, free] = np.where(np.arange(len(free)) % 2, BIG, SMALL)
        taken = walls[i].copy()
        taken[cell_of[things[i] > 0]] = True
        start[i] = rng.choice(np.where(~taken)[0])
    return torch.from_numpy(walls), torch.from_numpy(things), torch.from_numpy(ages), torch.from_numpy(start)


def cells() -> Tensor:
    """The cell of the world, y * 24 + x, of every place in the strips, int64 [2 * places]."""
    place = torch.arange(2 * PLACES)
    x = torch.tensor(STRIPS)[place // PLACES] + place % STRIP
    return place % PLACES // STRIP * WIDTH + x


@dataclass(frozen=True)
class ForagerState:
    """`layout` int64 [B]: which walls; `y`, `x` int64 [B] of the agent; `things` uint8 [B, 120] in the places of the
    two strips and `born` int64 [B, 120], the time at which each came; things that will come back: `wait` int64 [B, 24]
    steps, 0 where there is none, and what and where, `back` int64 [B, 24], strip * 4 + kind; `time` int64 [B]: steps of
    this world so far."""

    layout: Tensor
    y: Tensor
    x: Tensor
    things: Tensor
    born: Tensor
    wait: Tensor
    back: Tensor
    time: Tensor


class Forager(BatchedEnv):
    """A torus of 24 x 15 cells, walls in one of 15, and two strips of 4 x 15 cells in which two kinds of things grow.

    Observation: uint8 [B, view, view, 3] of 0 and 1, around the agent: walls, big things, small things. Actions: left,
    right, up, down; walls hold the agent back. Stepping on a thing eats it, and it comes back in the same strip after 9
    to 11 steps, in a place that is drawn; what was not eaten for 500 steps is taken away and comes back likewise. A
    thing gives base + a s, with a = `big` or `small` and s = sign(sin(2 pi time / period)), negated in the second
    strip: what is good in one strip is bad in the other, and every half period they change. There are no episodes and
    no borders.

    One of the 120 places of the strips is looked at for old things every step, so that they go after 500 to 619 steps.
    Of things that wait one comes back a step, if one of four places that are drawn for it is free; otherwise it waits
    on.

    Args:
        num_envs: number of copies B.
        view: cells a side that are seen, odd, at most 15.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: a view that is even or too large; see also `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "base": Param(-5.0, -1e3, 1e3, "what every thing gives"),
        "big": Param(9.0, -1e3, 1e3, "what a big thing gives or takes besides"),
        "small": Param(3.0, -1e3, 1e3, "what a small thing gives or takes besides"),
        "period": Param(500_000, 2, 2**31, "steps after which it is as before", integer=True),
    }
    #: of 1,000 steps: one that goes anywhere, and the search that knows all (see `envs.forager.search`)
    SCORE: ClassVar[tuple[float, float]] = (-470.0, 730.0)

    def __init__(self, num_envs: int = 1, *, view: Annotated[int, Range(1, 15)] = 9, **kwargs: Any) -> None:
        if view % 2 == 0 or not 1 <= view <= HEIGHT:
            raise EnvError(f"Forager.view is {view}; it must be odd and at most {HEIGHT}")
        self.view = view
        self.worlds = layouts()
        super().__init__(num_envs, **kwargs)
        self.worlds = tuple(each.to(self.device) for each in self.worlds)  # type: ignore[assignment]
        self.cells = cells().to(self.device)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A picture of bits; four moves."""
        return Box(0, 1, (self.view, self.view, 3), np.uint8), Discrete(4)

    def draw_state(self) -> ForagerState:
        """One of the worlds."""
        layout = (self.uniform(0.0, 1.0, self.num_envs) * LAYOUTS).long()
        _, things, ages, start = self.worlds
        zero = torch.zeros_like(layout)
        none = torch.zeros(self.num_envs, QUEUE, dtype=torch.int64, device=self.device)
        cell = start[layout]
        return ForagerState(layout, cell // WIDTH, cell % WIDTH, things[layout], -ages[layout], none, none, zero)

    def sign(self, time: Tensor) -> Tensor:
        """1 in the first half of a period, -1 in the second, 0 where they meet; in the second strip it is the other."""
        period = self.params["period"]
        phase = (time % period) * 2
        return torch.where((phase == 0) | (phase == period), 0, torch.where(phase < period, 1, -1))

    def worth(self, state: ForagerState) -> Tensor:
        """What the thing in every place of the strips would give now, 0 where there is none, float32 [B, 120]."""
        p = self.params
        place = torch.arange(2 * PLACES, device=self.device)
        sign = self.sign(state.time).unsqueeze(1) * torch.where(place < PLACES, 1, -1)
        amount = torch.where(state.things == BIG, p["big"].unsqueeze(1), p["small"].unsqueeze(1))
        return torch.where(state.things > 0, p["base"].unsqueeze(1) + amount * sign, 0.0)

    def advance(self, s: Any, action: Tensor) -> tuple[ForagerState, Tensor, Tensor, dict[str, Tensor]]:
        """Go, eat, and let things move and come back."""
        unit = self.uniform(0.0, 1.0, self.num_envs, 6)
        right, down = (action == 1).long() - (action == 0).long(), (action == 3).long() - (action == 2).long()
        y, x = (s.y + down) % HEIGHT, (s.x + right) % WIDTH
        blocked = self.worlds[0][s.layout, y * WIDTH + x]
        y, x = torch.where(blocked, s.y, y), torch.where(blocked, s.x, x)
        here, inside = _place(y, x)
        place = torch.arange(2 * PLACES, device=self.device)
        mine = (place == here.unsqueeze(1)) & inside.unsqueeze(1)
        thing = torch.where(inside, s.things.gather(1, here.unsqueeze(1)).squeeze(1).long(), NOTHING)
        p, eaten = self.params, thing > 0
        sign = self.sign(s.time) * torch.where(here < PLACES, 1, -1)
        reward = torch.where(eaten, p["base"] + torch.where(thing == BIG, p["big"], p["small"]) * sign, 0.0)
        # what waits comes back, one a step, to the first of four places that are drawn which is free
        wait = (s.wait - 1).clamp(min=1) * (s.wait > 0).long()
        queue = torch.arange(QUEUE, device=self.device)
        first = (wait == 1).long().argmax(1).unsqueeze(1)
        due = (wait.gather(1, first) == 1).squeeze(1)
        back = s.back.gather(1, first).squeeze(1)
        kind, strip = back % 4, back // 4
        tried = (unit[:, 2:] * PLACES).long() + (strip * PLACES).unsqueeze(1)
        walled = self.worlds[0][s.layout.unsqueeze(1), self.cells[tried]]
        free = (s.things.gather(1, tried) == NOTHING) & ~walled & ((tried != here.unsqueeze(1)) | ~inside.unsqueeze(1))
        found = tried.gather(1, free.long().argmax(1).unsqueeze(1))
        returns = due & free.any(1)
        comes = (place == found) & returns.unsqueeze(1)
        wait = torch.where((queue == first) & returns.unsqueeze(1), 0, wait)
        # what is old goes; one place is looked at
        looked = (s.time % (2 * PLACES)).unsqueeze(1)
        old = s.things.gather(1, looked).squeeze(1).long()
        age = s.time - s.born.gather(1, looked).squeeze(1)
        expired = (old > 0) & (age >= LIFE) & ~(eaten & (looked.squeeze(1) == here))
        goes = (place == looked) & expired.unsqueeze(1)
        pause = 10 + (unit[:, :2] * 3).long()
        wait, waiting = _put(wait, s.back, eaten, thing + 4 * (here >= PLACES).long(), pause[:, 0])
        wait, waiting = _put(wait, waiting, expired, old + 4 * (looked.squeeze(1) >= PLACES).long(), pause[:, 1])
        gone = (mine & eaten.unsqueeze(1)) | goes
        things = torch.where(gone, NOTHING, torch.where(comes, kind.unsqueeze(1), s.things.long())).to(torch.uint8)
        born = torch.where(comes, s.time.unsqueeze(1), s.born)
        following = ForagerState(s.layout, y, x, things, born, wait, waiting, s.time + 1)
        return following, reward, torch.zeros_like(eaten), {}

    def observe(self, s: Any) -> Tensor:
        """What lies around the agent."""
        side = torch.arange(self.view, device=self.device) - self.view // 2
        y = ((s.y.unsqueeze(1) + side) % HEIGHT).unsqueeze(2)
        x = ((s.x.unsqueeze(1) + side) % WIDTH).unsqueeze(1)
        wall = self.worlds[0][s.layout.view(-1, 1, 1), y * WIDTH + x]
        place, inside = _place(y, x)
        flat = place.expand(self.num_envs, self.view, self.view).flatten(1)
        thing = torch.where(inside, s.things.gather(1, flat).view(-1, self.view, self.view).long(), NOTHING)
        return torch.stack((wall, thing == BIG, thing == SMALL), 3).to(torch.uint8)

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The whole world, what is seen of it, and the agent."""
        s, colour = state or self.state, torch.full((HEIGHT * WIDTH, 3), 235, dtype=torch.uint8)
        things = s.things[index].cpu()
        colour[self.worlds[0][s.layout[index]].cpu()] = torch.tensor(INK, dtype=torch.uint8)
        for kind, which in ((BIG, COLOURS[0]), (SMALL, COLOURS[1])):
            colour[self.cells.cpu()[things == kind]] = torch.tensor(which, dtype=torch.uint8)
        picture, (y, x) = colour.view(HEIGHT, WIDTH, 3).numpy(), (int(s.y[index]), int(s.x[index]))
        side = np.arange(self.view) - self.view // 2
        unseen = np.ones((HEIGHT, WIDTH), bool)
        unseen[np.ix_((y + side) % HEIGHT, (x + side) % WIDTH)] = False
        picture[unseen] = (picture[unseen] * 0.6 + 60).astype(np.uint8)
        picture[y, x] = COLOURS[3]
        return enlarged(picture)


def _place(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The place in the strips of a cell, 0 where it lies in none, and whether it lies in one."""
    first = (x >= STRIPS[0]) & (x < STRIPS[0] + STRIP)
    second = (x >= STRIPS[1]) & (x < STRIPS[1] + STRIP)
    place = torch.where(first, y * STRIP + x - STRIPS[0], PLACES + y * STRIP + x - STRIPS[1])
    inside = first | second
    return torch.where(inside, place, 0), inside & (y >= 0)


def _put(wait: Tensor, back: Tensor, now: Tensor, what: Tensor, pause: Tensor) -> tuple[Tensor, Tensor]:
    """One more thing that waits, in the first free place of the queue."""
    first = (wait == 0).long().argmax(1).unsqueeze(1)
    put = (torch.arange(wait.shape[1], device=wait.device) == first) & now.unsqueeze(1)
    return torch.where(put, pause.unsqueeze(1), wait), torch.where(put, what.unsqueeze(1), back)
