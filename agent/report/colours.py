"""One colour for one strategy, in every page and plot."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

#: Okabe & Ito (2008), readable with every colour blindness; yellow is left out (too pale for a line). A page draws the
#: same hues, lighter or darker with its background.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
#: what most comparisons have
_FIXED = {"clear": 0, "gpm": 1, "ewc": 2, "functional": 3, "er": 4, "l2_init": 5, "finetune": 6}


def places(labels: Sequence[str]) -> list[int]:
    """The colour of each label as its place in the palette; beyond the palette's end come the dashed ones.

    A label has a place of its own, by its name alone; of two that want one place, the first of the alphabet has it.
    """
    free = set(range(len(PALETTE) * len(DASHES)))
    found: dict[str, int] = {}
    for label in sorted(set(labels), key=lambda label: (label not in _FIXED, label)):
        wanted = _FIXED.get(label, crc32(label.encode()) % (len(PALETTE) - 1))
        order = [*range(wanted, len(PALETTE)), *range(wanted), *range(len(PALETTE), len(PALETTE) * len(DASHES))]
        found[label] = next((place for place in order if place in free), wanted)
        free.discard(found[label])
    return [found[label] for label in labels]
