"""Pictures as one tensor program, for any device. Suffixes: B copies, H rows, W columns, S cells, L = S + 1 lines."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.kernels.rays import EYE, FADE, NEAR, SIDE, TEXELS, THING, Camera, Scene

INF = float("inf")
#: a ray along a line between cells would divide by zero
LEAST = 1e-6


def frames(camera: Camera, scene: Scene, where_B: Tensor | None = None, base: Tensor | None = None) -> Tensor:
    """See `kernels.rays.frames`."""
    made = _draw(camera, scene)
    return made if where_B is None or base is None else torch.where(where_B.view(-1, 1, 1, 1), made, base)


def directions(camera: Camera, heading_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosine and sine [B, 1] of the heading, and how x and y change along the ray of a column for a cell of depth
    [B, W]."""
    cos, sin = heading_B.cos().unsqueeze(1), heading_B.sin().unsqueeze(1)
    ahead_x, ahead_y = cos - camera.across * sin, sin + camera.across * cos
    return cos, sin, _nonzero(ahead_x), _nonzero(ahead_y)


def walls(grid_BSS: Tensor, p_B: Tensor, q_B: Tensor, ahead_BW: Tensor, along_BW: Tensor) -> tuple[Tensor, ...]:
    """Where rays first enter a wall through a line of constant p.

    `grid_BSS` is indexed by p, then q; rays start at p, q and go `ahead` and `along` per cell of depth. Returns depth,
    infinite if there is no such wall, the place on the wall in [0, 1], and the texture, all [B, W].
    """
    B, S, _ = grid_BSS.shape
    line_L = torch.arange(S + 1, device=grid_BSS.device)
    ahead, along = ahead_BW.unsqueeze(2), along_BW.unsqueeze(2)
    depth_BWL = (line_L - p_B.view(-1, 1, 1)) / ahead
    place_BWL = q_B.view(-1, 1, 1) + depth_BWL * along
    entered = torch.where(ahead > 0, line_L, line_L - 1)
    inside = (entered >= 0) & (entered < S) & (depth_BWL > 0)
    cell = entered.clamp(0, S - 1) * S + place_BWL.clamp(0, S - 1).long()
    texture_BWL = grid_BSS.reshape(B, -1).gather(1, cell.flatten(1)).view_as(cell)
    depth_BW, first = torch.where(inside & (texture_BWL > 0), depth_BWL, INF).min(2)
    first = first.unsqueeze(2)
    place_BW, texture_BW = place_BWL.gather(2, first).squeeze(2), texture_BWL.gather(2, first).squeeze(2).long()
    return depth_BW, place_BW - place_BW.floor(), texture_BW


def depths(camera: Camera, scene: Scene) -> tuple[Tensor, ...]:
    """Depth of the wall that each column sees, the place on it, its texture, and its share of the light, all [B, W]."""
    _, _, ahead_x, ahead_y = directions(camera, scene.heading)
    depth_x, place_x, texture_x = walls(scene.grid.transpose(1, 2), scene.x, scene.y, ahead_x, ahead_y)
    depth_y, place_y, texture_y = walls(scene.grid, scene.y, scene.x, ahead_y, ahead_x)
    first = depth_x <= depth_y
    return (
        torch.where(first, depth_x, depth_y),
        torch.where(first, place_x, place_y),
        torch.where(first, texture_x, texture_y),
        torch.where(first, 1.0, SIDE),
    )


def _draw(camera: Camera, scene: Scene) -> Tensor:
    cos, sin, ahead_x, ahead_y = directions(camera, scene.heading)
    depth_BW, place_BW, texture_BW, light_BW = depths(camera, scene)
    up, flat = camera.up.view(-1, 1), camera.flat.view(-1, 1)
    height_BHW = EYE + up * depth_BW.unsqueeze(1)
    wall = (height_BHW >= 0) & (height_BHW < 1)
    x_BHW = scene.x.view(-1, 1, 1) + flat * ahead_x.unsqueeze(1)
    y_BHW = scene.y.view(-1, 1, 1) + flat * ahead_y.unsqueeze(1)
    u = torch.where(wall, place_BW.unsqueeze(1), x_BHW - x_BHW.floor())
    v = torch.where(wall, height_BHW, y_BHW - y_BHW.floor())
    flats = torch.where(up < 0, camera.floor, camera.ceiling)
    index = _texel(torch.where(wall, texture_BW.unsqueeze(1), flats), u, v)
    depth = torch.where(wall, depth_BW.unsqueeze(1), flat)
    light = torch.where(wall, light_BW.unsqueeze(1), 1.0)
    nearest_BHW = torch.where(wall, depth_BW.unsqueeze(1), INF)
    for k in range(scene.kind.shape[1]):
        dx, dy = (scene.thing_x[:, k] - scene.x).unsqueeze(1), (scene.thing_y[:, k] - scene.y).unsqueeze(1)
        far, right = dx * cos + dy * sin, dy * cos - dx * sin  # [B, 1]
        u_BW = (camera.across * far - right) / THING + 0.5
        v_BH = (EYE + camera.up * far) / THING
        columns = (u_BW >= 0) & (u_BW < 1) & (far > NEAR) & (far < depth_BW) & scene.there[:, k].unsqueeze(1)
        rows = (v_BH >= 0) & (v_BH < 1)
        at = _texel(scene.kind[:, k].view(-1, 1, 1), u_BW.unsqueeze(1), v_BH.unsqueeze(2))
        far = far.unsqueeze(2)
        shown = columns.unsqueeze(1) & rows.unsqueeze(2) & (far < nearest_BHW) & (camera.solid[at] > 0)
        index, depth = torch.where(shown, at, index), torch.where(shown, far, depth)
        nearest_BHW, light = torch.where(shown, far, nearest_BHW), torch.where(shown, 1.0, light)
    shade = light / (1 + FADE * depth)
    return (camera.texels[index] * shade.unsqueeze(3)).to(torch.uint8)


def _texel(texture: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Where in the table of texels a place of a texture lies."""
    column, row = ((each * TEXELS).clamp(0, TEXELS - 1).long() for each in (u, v))
    return (texture * TEXELS + row) * TEXELS + column


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < LEAST, LEAST, x)
