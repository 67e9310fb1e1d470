"""Perfect memory: replay of all that was ever seen, the upper bound of what a buffer can do (Wolczyk et al. 2021)."""

from __future__ import annotations

from typing import Any

from lifelong.agent.strategies.er import ER


class PerfectMemory(ER):
    """`er` with a buffer for every sequence of the stream, so nothing is ever dropped.

        capacity = chunks of the stream * rollout.copies

    It is counted before the start like any other capacity; `place: disk` and `storage: compact` make room. When a run
    is given new tasks the buffer grows. Needs no boundaries.

    Args:
        options: see `Replaying`; no `capacity`, `mib` or `writing`, which follow from the stream.
    """

    def __init__(self, **options: Any) -> None:
        given = sorted({"capacity", "mib", "writing"} & options.keys())
        if given:
            raise ValueError(f"perfect_memory keeps everything, so it takes no {given[0]}; use er")
        super().__init__(writing="ring", **options)

    def expect(self, sequences: int) -> None:
        self.capacity = sequences
