"""First-person pictures of worlds of square cells, for B copies at once: walls, floor, ceiling and things that stand.

A column of the picture is a ray; the wall that it meets first, and how deep it lies behind the picture, follow from
where the ray crosses the lines between cells (Amanatides & Woo 1987), all of them at once and without a loop over
steps. Things are pictures that face the viewer (billboards) and hide each other by their depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong.kernels.dispatch import Op

#: texels a side of a texture; the height of walls and of the eye, and the size of things, in cells
TEXELS, EYE, THING = 16, 0.5, 0.6
#: things nearer than this are not seen; walls never are
NEAR = 0.1
#: how fast light fades with depth, and what is left of it on walls that face north and south
FADE, SIDE = 0.12, 0.8

_FRAMES = Op("rays", "lifelong.kernels.rays", ("torch", "cpu"), (torch.float32,))


@dataclass(frozen=True)
class Camera:
    """What is the same in all pictures of one size.

    `across` float32 [W] and `up` float32 [H]: how far right and up the ray of a column and a row goes while it goes one
    cell ahead; `flat` float32 [H]: the depth at which a row meets floor or ceiling. `texels` uint8 [textures *
    TEXELS**2, 3] and `solid` uint8 [textures * TEXELS**2]: colours, and whether there is any, for things; rows of a
    texture go from the floor up. `floor` and `ceiling`: their textures.
    """

    across: Tensor
    up: Tensor
    flat: Tensor
    texels: Tensor
    solid: Tensor
    floor: int
    ceiling: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, 3."""
        return len(self.up), len(self.across), 3


def camera(
    height: int, width: int, textures: Tensor, *, floor: int, ceiling: int, field: float = 90.0, device: torch.device
) -> Camera:
    """A camera with square pixels.

    Args:
        height: pixels; even, so that no row lies at the horizon.
        width: pixels.
        textures: uint8 [textures, TEXELS, TEXELS, 4], red, green, blue, and 0 where a thing has a hole.
        floor: texture of the floor.
        ceiling: texture of the ceiling.
        field: horizontal field of view in degrees.
        device: of the tensors.
    """
    half = math.tan(math.radians(field) / 2)
    across = ((torch.arange(width, dtype=torch.float64) + 0.5) * 2 / width - 1) * half
    up = (height / 2 - torch.arange(height, dtype=torch.float64) - 0.5) * 2 / width * half
    flat = torch.where(up < 0, EYE, 1 - EYE) / up.abs()
    texels = textures.reshape(-1, 4)
    return Camera(
        across.float().to(device),
        up.float().to(device),
        flat.float().to(device),
        texels[:, :3].contiguous().to(device),
        texels[:, 3].contiguous().to(device),
        floor,
        ceiling,
    )


@dataclass(frozen=True)
class Scene:
    """What is seen, of B copies with worlds of S x S cells and K things.

    `grid` uint8 [B, S, S]: textures of walls, row y, column x, 0 where there is none; there are walls all around. `x`,
    `y`, `heading` float32 [B]: where the viewer stands, in cells, and looks, in radians from the x axis towards the y
    axis. Things: `thing_x`, `thing_y` float32 [B, K], `kind` int64 [B, K], their textures, `there` bool [B, K].
    """

    grid: Tensor
    x: Tensor
    y: Tensor
    heading: Tensor
    thing_x: Tensor
    thing_y: Tensor
    kind: Tensor
    there: Tensor


def frames(camera: Camera, scene: Scene, where_B: Tensor | None = None, base: Tensor | None = None) -> Tensor:
    """Pictures, uint8 [B, height, width, 3].

    Args:
        camera: see `Camera`.
        scene: see `Scene`.
        where_B: bool [B]: the copies that are drawn; the others have their picture of `base`.
        base: uint8 [B, height, width, 3].
    """
    made: Tensor = _FRAMES.module("auto", camera.up).frames(camera, scene, where_B, base)
    return made
