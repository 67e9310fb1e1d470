"""Pictures of environments for people: drawing, what an environment without a renderer shows, and files.

An environment of your own has a picture as soon as it has a method

    def render(self, state, index):  # uint8 array [height, width, 3] of copy `index` in `state`

and until then its observation is drawn. All drawing is done by Pillow, which comes with matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from lifelong.envs.errors import EnvError, optional

Colour = tuple[int, int, int]
#: background, ink, lines, and colours that go together
PAPER, INK, GREY = (250, 250, 247), (38, 42, 51), (176, 180, 186)
COLOURS: tuple[Colour, ...] = (
    (66, 110, 180), (221, 132, 60), (85, 160, 104), (196, 78, 82), (129, 114, 178),
    (147, 120, 96), (218, 139, 195), (204, 185, 84), (100, 181, 205), (120, 120, 120),
)  # fmt: skip
#: pixels of the longer side that a picture has about
SIZE = 320
_FINER = 3  # drawn so many times as large, so that edges are smooth


class Canvas:
    """A picture in the units of what it shows; y points up.

    Args:
        x: what lies at the left and the right edge.
        y: what lies at the lower and the upper edge.
        width: pixels.
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float], width: int = SIZE) -> None:
        from PIL import Image, ImageDraw

        self._left, self._top, self._scale = x[0], y[1], width * _FINER / (x[1] - x[0])
        self._size = (width, max(1, round(width * (y[1] - y[0]) / (x[1] - x[0]))))
        self._image = Image.new("RGB", (self._size[0] * _FINER, self._size[1] * _FINER), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (x - self._left) * self._scale, (self._top - y) * self._scale

    def line(self, *points: tuple[float, float], colour: Colour = INK, width: float = 2) -> None:
        """A line through points, so many pixels wide, with round ends."""
        places = [self._at(*point) for point in points]
        self._draw.line(places, colour, round(width * _FINER), joint="curve")
        radius = width * _FINER / 2
        for px, py in (places[0], places[-1]):
            self._draw.ellipse((px - radius, py - radius, px + radius, py + radius), colour)

    def area(self, *points: tuple[float, float], colour: Colour = GREY) -> None:
        """A polygon."""
        self._draw.polygon([self._at(*point) for point in points], colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour = INK) -> None:
        """A disc."""
        (px, py), r = self._at(x, y), radius * self._scale
        self._draw.ellipse((px - r, py - r, px + r, py + r), colour)

    def box(self, x: float, y: float, width: float, height: float, colour: Colour = GREY, corner: float = 0) -> None:
        """A rectangle from its lower left corner."""
        (left, bottom), (right, top) = self._at(x, y), self._at(x + width, y + height)
        self._draw.rounded_rectangle((left, top, right, bottom), corner * self._scale, colour)

    def text(self, x: float, y: float, text: str, size: float = 12, colour: Colour = INK, anchor: str = "mm") -> None:
        """A line of text, so many pixels high; its middle is at the place."""
        from PIL import ImageFont

        self._draw.text(self._at(x, y), text, colour, ImageFont.load_default(size * _FINER), anchor)

    def array(self) -> np.ndarray:
        """The picture, uint8 [height, width, 3]."""
        from PIL import Image

        return np.asarray(self._image.resize(self._size, Image.Resampling.LANCZOS))


def enlarged(picture: np.ndarray, size: int = SIZE) -> np.ndarray:
    """A picture of a few pixels with every pixel as a square; uint8 [about size, about size, 3]."""
    times = max(1, size // max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1)


def board(values: np.ndarray, colours: Sequence[Colour], texts: Sequence[str] = ()) -> np.ndarray:
    """A board of cells.

    Args:
        values: integers [rows, columns]: which of the colours, and of the texts if there are any.
        colours: of the cells.
        texts: what is written in them.
    """
    rows, columns = values.shape
    canvas = Canvas((0, columns), (0, rows))
    for y, x in np.ndindex(rows, columns):
        value = int(values[y, x])
        canvas.box(x + 0.03, rows - 1 - y + 0.03, 0.94, 0.94, colours[value % len(colours)], 0.08)
        if texts and texts[value]:
            canvas.text(x + 0.5, rows - 0.5 - y, texts[value], 0.5 * SIZE / columns)
    return canvas.array()


def cards(values: Sequence[int | None], names: Sequence[str] = (), title: str = "") -> np.ndarray:
    """Cards in a row.

    Args:
        values: of each card its kind, which its colour and its sign follow; None: face down.
        names: what is written below each.
        title: above them.
    """
    count = len(values)
    canvas = Canvas((0, max(count, 3)), (-0.35, 2), SIZE)
    shift = max(0, 3 - count) / 2
    for i, value in enumerate(values):
        left = i + shift
        colour = GREY if value is None else COLOURS[value % len(COLOURS)]
        canvas.box(left + 0.08, 0.1, 0.84, 1.2, GREY, 0.1)
        canvas.box(left + 0.1, 0.12, 0.8, 1.16, (255, 255, 255) if value is not None else (225, 228, 232), 0.09)
        if value is not None:
            canvas.text(left + 0.5, 0.7, str(value), 0.5 * SIZE / max(count, 3), colour)
        if names:
            canvas.text(left + 0.5, -0.12, names[i], min(13.0, 0.2 * SIZE / max(count, 3) + 4))
    if title:
        canvas.text(max(count, 3) / 2, 1.65, title, 15)
    return canvas.array()


def bars(values: np.ndarray, names: Sequence[str] = (), low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Numbers as bars from 0 on.

    Args:
        values: one-dimensional.
        names: what is written below each.
        low: the least that fits in.
        high: the most.
    """
    count, low, high = len(values), min(low, 0.0), max(high, 0.0)
    span = max(high - low, 1e-6)
    canvas = Canvas((0, 2), (-0.12, 1.08))
    zero, step = -low / span, 2 / max(count, 1)
    for i, value in enumerate(np.nan_to_num(values.astype(float)).clip(low, high)):
        top = (value - low) / span
        colour = COLOURS[0] if value >= 0 else COLOURS[3]
        canvas.box(i * step + 0.1 * step, min(top, zero), 0.8 * step, abs(top - zero), colour)
        if names and step > 0.08:
            canvas.text((i + 0.5) * step, -0.06, names[i], min(12.0, 70 * step))
    canvas.line((0, zero), (2, zero), width=1)
    return canvas.array()


def observation(space: gymnasium.Space[Any], obs: np.ndarray) -> np.ndarray:
    """What a policy sees, as a picture: images as they are, planes of bits as colours, numbers as bars."""
    shape = obs.shape
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return cards([int(value) for value in obs.flatten()[:16]])
    if obs.dtype == np.uint8 and len(shape) == 3:
        high = int(np.max(getattr(space, "high", 255), initial=1))
        picture = obs if shape[2] <= shape[0] else obs.transpose(1, 2, 0)
        if picture.shape[2] == 3 and high > 15:
            return enlarged(picture)
        if high > 1:  # of stacked frames the newest
            picture = picture[..., -1:].astype(float) * (255 / high)
            return enlarged(picture.repeat(3, 2).astype(np.uint8))
        return enlarged(planes(picture))
    values = obs.flatten().astype(float)
    bounds = [
        float(np.clip(np.min(getattr(space, "low", 0)), -1e3, 0)),
        float(np.clip(np.max(getattr(space, "high", 1)), 0, 1e3)),
    ]
    if max(abs(bound) for bound in bounds) >= 100:
        most = max(1.0, float(np.abs(np.nan_to_num(values)).max(initial=0)))
        bounds = [-most, most]
    return bars(values, [str(i) for i in range(len(values))], *bounds)


def planes(bits: np.ndarray) -> np.ndarray:
    """Planes of bits, [H, W, C], each in a colour of its own; uint8 [H, W, 3]."""
    picture = np.full((*bits.shape[:2], 3), 24, np.uint8)
    for channel in range(bits.shape[2]):
        picture[bits[..., channel] > 0] = COLOURS[channel % len(COLOURS)]
    return picture


def sheet(pictures: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """Pictures side by side, each with a line of text below it; a single one keeps its size.

    Returns:
        uint8 [height, width, 3], both even, as films need them.
    """
    from PIL import Image, ImageDraw, ImageFont

    images = [Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures]
    long = max(image.width for image in images) > 1.5 * SIZE
    if len(images) > 1:
        for image in images:
            image.thumbnail(((1 + long) * SIZE - 16, SIZE * 3 // 4))
    columns = min(len(images), 2 if long else 5 if len(images) == 5 else 4)
    margin = 16 if len(images) > 1 else 0
    wide = max(SIZE, *(image.width + image.width % 2 + margin for image in images))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(image.height for image in row) + 28 for row in rows]
    page = Image.new("RGB", (wide * columns, sum(height + height % 2 for height in heights)), PAPER)
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(13), 0
    for y, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for x, image in enumerate(row):
            page.paste(image, (x * wide + (wide - image.width) // 2, top + height - 28 - image.height))
            draw.text(((x + 0.5) * wide, top + height - 14), texts[y * columns + x], INK, font, "mm")
        top += height + height % 2
    return np.asarray(page)


def save(path: Path, frames: Sequence[np.ndarray], fps: float = 12.0) -> None:
    """Write frames of one size: the last one as .png, all as .gif or .mp4.

    Raises:
        EnvError: another suffix, or .mp4 without its package.
    """
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(frames[-1]).save(path)
    elif path.suffix == ".gif":
        images = [Image.fromarray(frame).quantize(128) for frame in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    elif path.suffix == ".mp4":
        films = optional("imageio_ffmpeg", "an .mp4 (a .gif does not)", "video")
        writer = films.write_frames(str(path), frames[0].shape[1::-1], fps=fps, macro_block_size=2)
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    else:
        raise EnvError(f"a picture is a .png, a film a .gif or .mp4, not {str(path)!r}")
