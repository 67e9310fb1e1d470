"""The files that a run appends to while it trains. A run that goes on cuts all of them back to what its checkpoint saw.

A checkpoint holds the size of each of these files. What was appended later is written again, by a run that repeats the
same steps, and would be there twice; a file that the checkpoint does not know is removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from lifelong.agent.errors import CheckpointError, DiskError

METRICS, TIMING, POINTS = "metrics.jsonl", "timing.jsonl", "evaluation.jsonl"
EVENTS = "events.out.tfevents.*"
#: of the tracker `csv`
CSV = "metrics.csv"
#: `evaluation.npz` is made from `evaluation.jsonl`
_DERIVED = "evaluation.npz"


class Appended:
    """A file that grows by whole records; each is in the file, though not yet on the disk, when `write` returns.

    Args:
        path: the file; it is made if need be.

    Raises:
        DiskError: it cannot be written (`write` and `sync`, too); no part of a record is left.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise _refused(path, error) from error
        self.size = os.fstat(self.descriptor).st_size

    def write(self, record: bytes) -> None:
        """Append a record."""
        left = memoryview(record)
        try:
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise _refused(self.path, error) from error
        self.size += len(record)

    def sync(self) -> None:
        """Have everything on the disk."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def _refused(path: Path, error: OSError) -> DiskError:
    return DiskError(f"cannot write {path}: {error.strerror or error}; what was saved is kept")


def present(folder: Path) -> list[Path]:
    """The files of this kind in a run folder."""
    names = [METRICS, TIMING, POINTS, CSV, *sorted(path.name for path in folder.glob(EVENTS))]
    return [folder / name for name in names if (folder / name).exists()]


def check(folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a run folder whose files are shorter than its checkpoint says. TensorBoard's may be missing: many are
    deleted to make room, and nothing depends on them.

    Args:
        folder: run folder.
        sizes: {name: bytes} of the checkpoint.

    Raises:
        CheckpointError: the first one that is shorter.
    """
    for name, size in sizes.items():
        path = folder / name
        there = path.stat().st_size if path.exists() else 0
        if there < size and not (there == 0 and path.match(EVENTS)):
            raise CheckpointError(
                f"{path} has {there:,} bytes, but had {size:,} when the checkpoint was saved; put the whole file back"
            )


def rewind(folder: Path, sizes: Mapping[str, int]) -> None:
    """Cut every file back to its size in the checkpoint; remove those that are not in it (all, if `sizes` is empty).

    Raises:
        CheckpointError: a file is shorter; nothing is touched then.
        DiskError: the folder cannot be written.
    """
    check(folder, sizes)
    for path in [*present(folder), folder / _DERIVED]:
        try:
            if path.name in sizes:
                os.truncate(path, sizes[path.name])
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _refused(path, error) from error
