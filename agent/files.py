"""Files that are replaced whole or not at all, and are on the disk when a call returns.

Everything that a run or a sweep writes in one piece goes through `write`: a reader, and whoever goes on after a kill or
a power cut, sees the old file or the whole new one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lifelong.agent.errors import DiskError

#: what a file is called while it is written; a kill may leave one behind
PARTIAL = ".partial"


def write(path: Path, content: str | bytes | Callable[[IO[bytes]], None]) -> None:
    """Replace the file `path` by `content`: text, bytes, or a function that writes into an open file.

    Raises:
        DiskError: it cannot be written; what was there before is there still.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        _forget(partial)
        raise DiskError(f"cannot write {path}: {error.strerror or error}; what was there before is kept") from error


def write_json(path: Path, content: Any) -> None:
    """Replace the file `path` by JSON (see `write`)."""
    write(path, json.dumps(content, indent=2) + "\n")


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: Path) -> None:
    """Remove what kills have left behind in a folder that nobody else writes to."""
    for path in folder.glob(f"*{PARTIAL}"):
        _forget(path)


def _forget(path: Path) -> None:
    with contextlib.suppress(OSError):  # a file too many does no harm
        path.unlink(missing_ok=True)
