"""The pictures that rooms are papered with and the things that stand in them, drawn here and always the same."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lifelong.kernels.rays import TEXELS

COLOURS = np.array(
    [(222, 56, 48), (60, 168, 66), (58, 96, 224), (240, 205, 50), (168, 70, 196), (60, 200, 205)], np.float32
)
SHAPES = ("ball", "box", "cone", "cross", "ring", "diamond", "key")
#: textures: the floor, kinds of wall, doors of every colour, the ceiling, things of every shape and colour
FLOOR, WALL, WALLS = 0, 1, 12
DOOR = WALL + WALLS
CEILING = DOOR + len(COLOURS)
THING = CEILING + 1
KEY = THING + SHAPES.index("key") * len(COLOURS)
#: things of any shape and colour but keys
OBJECTS = KEY - THING
GOAL = THING + len(SHAPES) * len(COLOURS)
PAD = GOAL + 1

_Y, _X = np.mgrid[0:TEXELS, 0:TEXELS].astype(np.float32)
_U, _V = (_X + 0.5) / TEXELS * 2 - 1, (_Y + 0.5) / TEXELS * 2 - 1  # from the left and from below, -1 to 1
_R = np.hypot(_U, _V)


@lru_cache(maxsize=1)
def textures() -> Tensor:
    """All of them, uint8 [textures, TEXELS, TEXELS, 4]; rows from below; red, green, blue, 0 for holes."""
    walls = [_wall(i) for i in range(WALLS)]
    doors = [_door(colour) for colour in COLOURS]
    things = [_shaded(colour, _shape(name)) for name in SHAPES for colour in COLOURS]
    flat = np.ones((TEXELS, TEXELS), np.float32)
    floor = _coloured((118, 104, 88), 1.0 - 0.12 * ((_X // 8 + _Y // 8) % 2))
    ceiling = _coloured((150, 170, 196), flat)
    pictures = [floor, *walls, *doors, ceiling, *things, _goal(), _pad()]
    return torch.from_numpy(np.stack(pictures).clip(0, 255).astype(np.uint8))


def _coloured(colour: object, light: np.ndarray, there: np.ndarray | None = None) -> np.ndarray:
    """A picture of one colour under `light`, where it is there."""
    solid = np.ones_like(light) if there is None else there.astype(np.float32)
    return np.concatenate((light[..., None] * np.asarray(colour, np.float32), solid[..., None]), 2)


def _wall(i: int) -> np.ndarray:
    """One of six patterns in one of twelve colours."""
    hue = i / WALLS * 6
    channels = [np.clip(abs((hue - shift) % 6 - 3) - 1, 0, 1) for shift in (0, 2, 4)]
    colour = 70 + 130 * np.array(channels)
    joint = (_Y % 4 == 0) | ((_X + 4 * (_Y // 4 % 2)) % 8 == 0)
    patterns = (
        joint,
        _X // 2 % 2 == 0,
        (_X // 4 + _Y // 4) % 2 == 0,
        (_X + _Y) % 8 < 3,
        np.hypot(_X % 8 - 3.5, _Y % 8 - 3.5) < 2.5,
        _Y // 2 % 2 == 0,
    )
    return _coloured(colour, np.where(patterns[i % 6], 0.6, 1.0))


def _door(colour: np.ndarray) -> np.ndarray:
    """A frame, two panels and a lock."""
    frame = (_X < 2) | (_X >= TEXELS - 2) | (_Y >= TEXELS - 2)
    panel = (abs(_U) < 0.6) & (abs(abs(_V - 0.05) - 0.42) < 0.3)
    lock = (abs(_X - 12) < 1) & (abs(_Y - 7.5) < 1.5)
    return _coloured(colour, np.where(frame, 0.45, np.where(lock, 0.1, np.where(panel, 1.1, 0.8))))


def _shape(name: str) -> np.ndarray:
    """Where a thing is, bool."""
    if name == "key":
        bow = (np.hypot(_U, _V - 0.5) < 0.42) & (np.hypot(_U, _V - 0.5) > 0.16)
        bit = (abs(_U) < 0.13) & (_V < 0.2) & (_V > -0.9)
        teeth = (_U >= 0) & (_U < 0.45) & ((abs(_V + 0.75) < 0.1) | (abs(_V + 0.4) < 0.1))
        return np.asarray(bow | bit | teeth)
    shapes = {
        "ball": _R < 0.9,
        "box": (abs(_U) < 0.8) & (abs(_V) < 0.8),
        "cone": (abs(_U) < 0.45 * (1 - _V)) & (_V < 0.9),
        "cross": (abs(_U) < 0.3) | (abs(_V) < 0.3),
        "ring": (_R < 0.95) & (_R > 0.45),
        "diamond": abs(_U) + abs(_V) < 0.95,
    }
    return np.asarray(shapes[name])


def _shaded(colour: np.ndarray, there: np.ndarray) -> np.ndarray:
    """A thing that light falls on from above and from the left."""
    return _coloured(colour, 0.85 + 0.25 * (_V - _U) / 2, there)


def _goal() -> np.ndarray:
    """An apple: red, with a leaf."""
    apple, leaf = np.hypot(_U, _V + 0.15) < 0.75, (abs(_U - 0.2) < 0.3) & (abs(_V - 0.75) < 0.15)
    picture = _shaded(np.array((235, 40, 40), np.float32), apple | leaf)
    picture[leaf & ~apple, :3] = (60, 220, 60)
    shine = np.hypot(_U + 0.25, _V - 0.15) < 0.2
    picture[shine, :3] = 255
    return picture


def _pad() -> np.ndarray:
    """A low plate with a bright rim."""
    there = _V < -0.55
    return _coloured((235, 235, 245), np.where(_V < -0.8, 0.55, 1.0).astype(np.float32), there)
