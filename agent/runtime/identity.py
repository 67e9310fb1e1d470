"""Whether a run goes on with what it was trained with (`agent.runtime.machine.identity`). With anything else it
would go on with other bits, so that is asked for (`--allow-inexact`) and recorded in `changes.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.agent.errors import CheckpointError
from lifelong.agent.runtime.changes import Change

#: as many differences are named in a sentence
_NAMED = 3


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """In what two identities differ; an operation or a package that only one of them uses is no difference."""
    pairs = [(name, old[name], new[name]) for name in old if name in new and name != "kernels"]
    ops = old.get("kernels", {}).items()
    backends = {(backend, new["kernels"][op]) for op, backend in ops if op in new["kernels"]}
    pairs += [("kernels", *pair) for pair in sorted(backends)]
    return [Change("inexact", name, was, now) for name, was, now in pairs if was != now]


def consent(found: Sequence[Change], folder: Path, allowed: bool) -> None:
    """Refuse to go on inexactly unless that is allowed.

    Raises:
        CheckpointError: it is not; one sentence with what differs.
    """
    if found and not allowed:
        was, now = (
            ", ".join(f"{change.key} {getattr(change, side)}"[:40] for change in found[:_NAMED])
            for side in ("old", "new")
        )
        raise CheckpointError(
            f"{folder} was trained with {was}; here it is {now}, so it would not go on bit for bit; --allow-inexact "
            "goes on and records that"
        )
