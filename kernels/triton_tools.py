"""Tile sizes that several Triton backends share. They depend on the sizes only, so that sums have a fixed order."""

from __future__ import annotations

import triton

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
