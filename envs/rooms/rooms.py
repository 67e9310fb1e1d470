"""What tasks in rooms share: a body that walks and turns among walls, and its view.

Rules, actions and the size of pictures are close to the memory tasks of DeepMind Lab (Beattie et al. 2016) as Irie et
al. (2024) used them, written anew; a step is one of theirs, of four frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range
from lifelong.envs.render import INK, Canvas, enlarged
from lifelong.envs.rooms import textures
from lifelong.kernels import rays

#: of an action: steps ahead, steps to the right, turns to the right
ACTIONS = ((1, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1), (1, 0, -1), (1, 0, 1), (0, 0, 0))
FORWARD, BACKWARD, STRAFE_LEFT, STRAFE_RIGHT, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT, STAY = range(9)
#: half the width of the body, and how near it comes to a thing that it touches, in cells
RADIUS, TOUCH = 0.2, 0.45
NORTH = -math.pi / 2


@dataclass(frozen=True)
class RoomsState(rays.Scene):
    """What is seen; tasks add what is not."""


class Rooms(BatchedEnv):
    """Rooms, seen by who walks in them.

    Observation: uint8 [B, height, width, 3], what is seen ahead. Actions: forward, backward, left and right without a
    turn, turn left, turn right, forward and turn left, forward and turn right, nothing. Who walks into a wall slides
    along it. Subclasses write `draw_state` and `judge`.

    Args:
        num_envs: number of copies B.
        height: pixels, even.
        width: pixels.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: an odd height; see also `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "speed": Param(0.25, 0.0, 0.45, "cells of a step"),
        "turn": Param(15.0, 0.0, 90.0, "degrees of a turn"),
    }
    #: a picture is a kernel of its own (`kernels.rays`), and all else is little
    COMPILES: ClassVar[bool] = False

    def __init__(
        self,
        num_envs: int = 1,
        *,
        height: Annotated[int, Range(8, 512)] = 72,
        width: Annotated[int, Range(8, 512)] = 96,
        **kwargs: Any,
    ) -> None:
        if height % 2:
            raise EnvError(f"{type(self).__name__}.height is {height}; it must be even")
        self.height, self.width = height, width
        super().__init__(num_envs, **kwargs)
        self.camera = rays.camera(
            height, width, textures.textures(), floor=textures.FLOOR, ceiling=textures.CEILING, device=self.device
        )
        self.moves = torch.tensor(ACTIONS, dtype=torch.float32, device=self.device)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A picture; nine moves."""
        return Box(0, 255, (self.height, self.width, 3), np.uint8), Discrete(len(ACTIONS))

    def judge(self, state: Any) -> tuple[Any, Tensor, Tensor]:
        """What happens where the body is now: the state with it, reward float32 [B], end bool [B]."""
        raise NotImplementedError

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        """Walk, and see what happens there."""
        x, y, heading = self.walk(state, action)
        return *self.judge(changed(state, x=x, y=y, heading=heading)), {}

    def observe(self, state: Any) -> Tensor:
        """What is seen."""
        return rays.frames(self.camera, state)

    def observe_fresh(self, state: Any, done_B: Tensor, final_obs: Tensor) -> Tensor:
        """The same, drawn anew only where there is a new episode."""
        return rays.frames(self.camera, state, done_B, final_obs)

    def walk(self, state: Any, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position and heading after an action."""
        ahead, right, turn = self.moves[action].unbind(1)
        heading = torch.remainder(state.heading + turn * torch.deg2rad(self.params["turn"]), 2 * math.pi)
        cos, sin = heading.cos() * self.params["speed"], heading.sin() * self.params["speed"]
        right_x, down_y = ahead * cos - right * sin, ahead * sin + right * cos
        x, y = state.x + right_x, state.y + down_y
        x = torch.where(self.blocked(state.grid, x, state.y), before_wall(x, right_x), x)
        y = torch.where(self.blocked(state.grid, x, y), before_wall(y, down_y), y)
        return x, y, heading

    def blocked(self, grid: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Whether a body at a place would stand in a wall, bool [B]."""
        reach = torch.tensor((-RADIUS, RADIUS), device=self.device)
        column, row = (x.unsqueeze(1) + reach).long(), (y.unsqueeze(1) + reach).long()
        cell = row.unsqueeze(2) * grid.shape[1] + column.unsqueeze(1)
        return (grid.flatten(1).gather(1, cell.flatten(1)) > 0).any(1)

    def render(self, state: Any = None, index: int = 0) -> Any:
        """What is seen, and a map: walls, things, the body and where it looks."""
        state = state or self.state
        view = enlarged(self.observe(state)[index].cpu().numpy())
        grid = state.grid[index].cpu()
        size, texels = len(grid), self.camera.texels.cpu().view(-1, rays.TEXELS**2, 3).float().mean(1)
        canvas = Canvas((0, size), (-size, 0), len(view))
        for y, x in torch.nonzero(grid).tolist():
            canvas.box(x, -y - 1, 1, 1, _rgb(texels[int(grid[y, x])]))
        for k in torch.nonzero(state.there[index]).flatten().tolist():
            colour = _rgb(texels[int(state.kind[index, k])])
            canvas.disc(float(state.thing_x[index, k]), -float(state.thing_y[index, k]), 0.25, colour)
        x, y, heading = (float(each[index]) for each in (state.x, state.y, state.heading))
        canvas.line((x, -y), (x + 0.7 * math.cos(heading), -y - 0.7 * math.sin(heading)), width=2)
        canvas.disc(x, -y, RADIUS + 0.08, INK)
        return np.concatenate((view, canvas.array()[: len(view)]), 1)

    # ---- helpers -------------------------------------------------------------------------------------------------

    def unit(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32 [B, *shape]."""
        return self.uniform(0.0, 1.0, self.num_envs, *shape)

    def repeated(self, tensor: Tensor) -> Tensor:
        """The same for every copy, [B, ...]."""
        return tensor.expand(self.num_envs, *tensor.shape)


def before_wall(at: Tensor, way: Tensor) -> Tensor:
    """Where a body that goes some way along an axis, to `at`, stands when the cell that it comes into is a wall."""
    reach = RADIUS + 1e-3
    return torch.where(way > 0, (at + RADIUS).floor() - reach, (at - RADIUS).ceil() + reach)


def _rgb(colour: Tensor) -> tuple[int, int, int]:
    red, green, blue = colour.int().tolist()
    return red, green, blue


def changed(state: Any, **values: Tensor) -> Any:
    """The state with other values of some fields (`dataclasses.replace`, which does not compile)."""
    return type(state)(**{f.name: values.get(f.name, getattr(state, f.name)) for f in fields(state)})


def put(state: Any, where_B: Tensor, place: tuple[Tensor, Tensor, Tensor], **values: Tensor) -> Any:
    """The state with the body at a place (x, y, heading) in some copies, and other values of some fields."""
    names = ("x", "y", "heading")
    now = {name: torch.where(where_B, to, getattr(state, name)) for name, to in zip(names, place, strict=True)}
    return changed(state, **now, **values)


def below(unit: Tensor, n: int | Tensor) -> Tensor:
    """Uniform integers in [0, n) from uniform numbers in [0, 1)."""
    most = n - 1
    return torch.minimum((unit * n).long(), torch.as_tensor(most, device=unit.device))


def other_than(unit: Tensor, n: int | Tensor, excluded: Tensor) -> Tensor:
    """Uniform integers in [0, n) without the one that is excluded."""
    drawn = below(unit, n - 1)
    return drawn + (drawn >= excluded).long()


def near(state: Any, x: Tensor, y: Tensor, distance: float = TOUCH) -> Tensor:
    """Whether the body is so near to a place [B] or places [B, K]."""
    own_x, own_y = (state.x, state.y) if x.dim() == 1 else (state.x.unsqueeze(1), state.y.unsqueeze(1))
    return (x - own_x).square() + (y - own_y).square() < distance * distance
