"""Programs that were built lately, by all that they were built for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")


class Kept(dict[tuple[Any, ...], Made]):
    """The last so many.

    Args:
        size: how many.
    """

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.size = size

    def get_or_build(self, key: tuple[Any, ...], build: Callable[[], Made | None]) -> Made | None:
        """What was built for `key`, or is now; None if it cannot be."""
        made = self.pop(key, None)
        if made is None:
            made = build()
        if made is not None:
            self[key] = made
            if len(self) > self.size:
                del self[next(iter(self))]
        return made
