"""Plasticity metrics: which steps of a chunk they are measured on."""

from __future__ import annotations

from itertools import product

from lifelong.agent.runtime.plasticity import ROWS, stride


def test_about_as_many_rows_as_asked_for_are_looked_at_and_every_copy_gets_its_share() -> None:
    for steps, copies in product((1, 16, 17, 128, 1000), (1, 6, 64, 96, 256, 1000)):
        rows = range(steps * copies)[:: stride(steps, copies)]
        seen = {row % copies for row in rows}
        assert len(seen) == min(copies, len(rows))  # no copy twice before all were there
        assert len(rows) == steps * copies or ROWS / 2 <= len(rows) <= 2 * ROWS
