"""Pictures, compiled (`cpu.c`): equal to the tensor program to the bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.kernels import build
from lifelong.kernels.arguments import pointer
from lifelong.kernels.rays import Camera, Scene

#: without contracting what torch does not contract
_FLAGS = (*build.FLAGS, "-ffp-contract=off")


@functools.cache
def _function() -> Callable[..., Any]:
    text = (Path(__file__).parent / "cpu.c").read_text()
    library = build.generated("rays", text, torch.float32, flags=_FLAGS)
    return build.entry_point(library, "rays_frames", "iiiiiiii" + "p" * 16, torch.float32)


def frames(camera: Camera, scene: Scene, where_B: Tensor | None = None, base: Tensor | None = None) -> Tensor:
    """See `kernels.rays.frames`."""
    H, W, _ = camera.shape
    B, S, _ = scene.grid.shape
    made = torch.empty((B, H, W, 3), dtype=torch.uint8) if base is None else base.clone()
    # the cosine and sine of torch
    each = (scene.grid, scene.x, scene.y, scene.heading.cos(), scene.heading.sin())
    things = (scene.thing_x, scene.thing_y, scene.kind, scene.there)
    kept = [tensor.contiguous() for tensor in (*each, *things)]
    where = None if where_B is None else where_B.contiguous()
    table = (camera.across, camera.up, camera.flat, camera.texels, camera.solid)
    _function()(
        B, H, W, S, scene.kind.shape[1], camera.floor, camera.ceiling, torch.get_num_threads(),
        *map(pointer, table), *map(pointer, kept), pointer(where), made.data_ptr(),
    )  # fmt: skip
    return made
