"""Pictures of rooms: distances of an empty room in closed form, walls, floors and things as small steps along every ray
find them, and the compiled pictures equal to the tensor program."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.kernels import build, dispatch, rays
from lifelong.kernels.rays import EYE, FADE, SIDE, TEXELS, THING, Camera, Scene, torch_backend

CPU = torch.device("cpu")
THINGS = 20  # textures from here on are things


def camera(height: int, width: int, seed: int = 0, holes: bool = True) -> Camera:
    """Textures of noise; things have holes."""
    textures = torch.randint(0, 256, (30, TEXELS, TEXELS, 4), generator=torch.Generator().manual_seed(seed))
    textures[..., 3] = textures[..., 3] > 80 if holes else 1
    return rays.camera(height, width, textures.to(torch.uint8), floor=0, ceiling=19, device=CPU)


def scene(copies: int, size: int, things: int, seed: int = 0) -> Scene:
    """Random walls inside of a wall, the viewer in a free cell."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    grid = torch.randint(1, 13, (copies, size, size), generator=generator) * (unit(copies, size, size) < 0.25)
    grid[:, [0, -1]] = 5
    grid[:, :, [0, -1]] = 7
    cell = torch.stack(
        [torch.nonzero(g == 0)[int(u * (g == 0).sum())] for g, u in zip(grid, unit(copies), strict=True)]
    )
    y, x = (cell + 0.1 + 0.8 * unit(copies, 2)).unbind(1)
    at = 1 + (size - 2) * unit(2, copies, things)
    kind = torch.randint(THINGS, 30, (copies, things), generator=generator)
    there = unit(copies, things) < 0.8
    return Scene(grid.to(torch.uint8), x, y, 8 * unit(copies) - 1, at[0], at[1], kind, there)


def test_depths_of_an_empty_room_are_those_of_its_four_walls() -> None:
    size, view = 8, camera(2, 31)
    grid = torch.zeros(1, size, size, dtype=torch.uint8)
    grid[:, 0], grid[:, -1], grid[:, :, 0], grid[:, :, -1] = 1, 2, 3, 4  # north, south, west, east
    none = torch.zeros(1, 0)
    for x, y, heading in ((2.5, 3.5, 0.0), (1.2, 6.9, 0.7), (4.0, 4.0, 2.4), (6.5, 1.5, -2.0), (3.3, 2.1, math.pi)):
        place = [torch.tensor([each], dtype=torch.float32) for each in (x, y, heading)]
        depth, _, texture, _ = torch_backend.depths(view, Scene(grid, *place, none, none, none.long(), none.bool()))
        for column in range(31):
            angle = heading + math.atan(2 * (column + 0.5) / 31 - 1)
            to = {  # the length of the way to each wall
                1: (y - 1) / -math.sin(angle) if math.sin(angle) < 0 else math.inf,
                2: (size - 1 - y) / math.sin(angle) if math.sin(angle) > 0 else math.inf,
                3: (x - 1) / -math.cos(angle) if math.cos(angle) < 0 else math.inf,
                4: (size - 1 - x) / math.cos(angle) if math.cos(angle) > 0 else math.inf,
            }
            near = min(to, key=lambda wall: to[wall])
            assert int(texture[0, column]) == near
            assert float(depth[0, column]) == pytest.approx(to[near] * math.cos(angle - heading), rel=1e-5)


def marched(view: Camera, s: Scene, b: int, step: float = 2e-3) -> np.ndarray:
    """The picture of a copy by small steps along the ray of every pixel in three dimensions, float64 [H, W, 3]."""
    H, W, _ = view.shape
    grid, x, y, heading = s.grid[b].numpy(), float(s.x[b]), float(s.y[b]), float(s.heading[b])
    forward, right = np.array([math.cos(heading), math.sin(heading)]), np.array([-math.sin(heading), math.cos(heading)])
    t = np.arange(step, 2.0 * len(grid), step)  # cells ahead
    picture = np.zeros((H, W, 3))
    table = view.texels.view(-1, TEXELS, TEXELS, 3).numpy().astype(float)
    for h in range(H):
        for w in range(W):
            side, up = 2 * (w + 0.5) / W - 1, (H / 2 - h - 0.5) * 2 / W
            at = np.array([x, y]) + t[:, None] * (forward + side * right)
            z = EYE + up * t
            cell = np.floor(at).astype(int).clip(0, len(grid) - 1)
            wall = grid[cell[:, 1], cell[:, 0]] > 0
            end = int(np.argmax(wall | (z < 0) | (z >= 1)))
            texture, depth, light = int(grid[cell[end, 1], cell[end, 0]]), t[end], 1.0
            if not wall[end]:
                texture = view.floor if z[end] < 0 else view.ceiling
            elif cell[end, 1] != cell[end - 1, 1]:
                light = SIDE
            colour = table[texture, 0, 0]
            for k in np.flatnonzero(s.there[b].numpy()):
                offset = np.array([float(s.thing_x[b, k]) - x, float(s.thing_y[b, k]) - y])
                far, aside = offset @ forward, offset @ right
                shown = abs(side * far - aside) < THING / 2 and 0 <= EYE + up * far < THING
                if rays.NEAR < far < depth and shown:
                    colour, depth, light = table[int(s.kind[b, k]), 0, 0], far, 1.0
            picture[h, w] = colour * light / (1 + FADE * depth)
    return picture


def test_pictures_are_what_small_steps_along_every_ray_find() -> None:
    view, s = camera(14, 20, holes=False), scene(4, 7, 4, seed=3)
    plain = view.texels.view(-1, TEXELS * TEXELS, 3)[:, :1].expand(-1, TEXELS * TEXELS, 3).reshape(-1, 3)
    view = dataclasses.replace(view, texels=plain.contiguous())
    drawn = torch_backend.frames(view, s).numpy().astype(float)
    wrong = [np.abs(drawn[b] - marched(view, s, b)).max(2) > 1.1 for b in range(4)]
    assert np.mean(wrong) < 0.01  # edges that lie within a step


def test_a_texture_lies_on_a_wall_from_left_to_right_and_from_below() -> None:
    """Straight ahead, half a cell away, a wall of one cell fills the picture."""
    textures = torch.zeros(30, TEXELS, TEXELS, 4)
    textures[1, ..., 0] = torch.arange(TEXELS) * 16  # red grows along the columns
    textures[1, ..., 1] = torch.arange(TEXELS).view(-1, 1) * 16  # green grows from below
    view = rays.camera(32, 32, textures.to(torch.uint8), floor=0, ceiling=19, device=CPU)
    grid, none = torch.ones(1, 3, 3, dtype=torch.uint8), torch.zeros(1, 0)
    grid[0, 1, 1] = 0
    place = [torch.tensor([each]) for each in (1.5, 1.5, 0.0)]
    picture = torch_backend.frames(view, Scene(grid, *place, none, none, none.long(), none.bool()))[0]
    expected = (torch.arange(32) // 2 * 16 / (1 + FADE * 0.5)).floor()
    assert torch.equal(picture[0, :, 0].float(), expected)
    assert torch.equal(picture[:, 0, 1].float(), expected.flip(0))


@pytest.mark.skipif(not build.can_compile(), reason="there is no C compiler")
@pytest.mark.parametrize(("height", "width", "size", "things"), [(72, 96, 11, 6), (24, 33, 5, 1), (8, 8, 9, 0)])
def test_compiled_pictures_are_the_tensor_program_to_the_bit(height: int, width: int, size: int, things: int) -> None:
    from lifelong.kernels.rays import cpu

    view, s = camera(height, width), scene(40, size, things, seed=1)
    s = dataclasses.replace(s, heading=torch.where(torch.arange(40) < 8, (torch.arange(40) * math.pi / 4), s.heading))
    whole = torch_backend.frames(view, s)
    assert torch.equal(cpu.frames(view, s), whole)
    some, base = torch.arange(40) % 3 == 0, torch.full_like(whole, 9)
    expected = torch.where(some.view(-1, 1, 1, 1), whole, base)
    assert torch.equal(cpu.frames(view, s, some, base), expected)
    assert torch.equal(torch_backend.frames(view, s, some, base), expected)
    assert base.unique().tolist() == [9]


@pytest.mark.slow
def test_the_tensor_program_is_one_graph() -> None:
    view, s = camera(8, 12), scene(3, 5, 2)
    whole = torch.compile(torch_backend.frames, fullgraph=True, backend="eager")
    assert torch.equal(whole(view, s), torch_backend.frames(view, s))


def test_the_backend_can_be_forced() -> None:
    view, s = camera(8, 12), scene(3, 5, 2)
    with dispatch.force("torch"):
        rays.frames(view, s)
        assert dispatch.chosen()["rays"] == "torch"
