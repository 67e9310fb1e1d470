"""What Triton backends share: kernels from text that was written at run time, and tile sizes, which depend on the sizes
only, so that sums have a fixed order."""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

_WIDE = 2048  # copies from which 32 a program still fill a GPU of about a hundred multiprocessors


def rows_per_program(copies: int) -> int:
    """Copies of one program of a dense cell; tl.dot needs 16 at least."""
    return 32 if copies >= _WIDE else 16


def blocks(units: int) -> dict[str, int]:
    """Tiles of the product with a recurrent weight: BLOCK_N units written, BLOCK_K summed over at a time, and warps.

    Wider tiles, or fewer warps, spill registers in the compiled code for an H100.
    """
    tile = min(max(triton.next_power_of_2(units), 16), 32)
    return {"BLOCK_N": tile, "BLOCK_K": tile, "num_warps": 8}


def from_source(name: str, text: str, functions: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the Python in `text` defines; it sees `triton`, `tl` and the `functions`. `name` must differ by text."""
    file = f"<lifelong {name}>"
    # Triton asks for a kernel's source by its file
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    found: dict[str, Any] = {**(functions or {}), "triton": triton, "tl": tl, "__name__": f"{__name__}.{name}"}
    exec(compile(text, file, "exec"), found)
    return found
