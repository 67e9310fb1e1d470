"""Files that are replaced whole or not at all, and are on the disk when a call returns; and reading JSON that may be
damaged.

Everything that a run or a sweep writes in one piece goes through `write`: a reader, and whoever goes on after a kill or
a power cut, sees the old file or the whole new one. What they read goes through `read_json`: whatever became of it in
between, it is of the shape that was written, or one sentence.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lifelong.agent.errors import CheckpointError, DiskError, LifelongError

#: what a file is called while it is written; a kill may leave one behind
PARTIAL = ".partial"
#: a number in JSON; null and NaN stand for what is undefined
NUMBER = (int, float, type(None))
_MISSING = object()


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


def make_folder(folder: Path) -> None:
    """Make a folder if need be, and those above it.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot write to {folder}: {error.strerror}") from error


def write_json(path: Path, content: Any) -> None:
    """Replace the file `path` by JSON (see `write`)."""
    write(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, shape: Any, error: type[LifelongError] = CheckpointError) -> Any:
    """What a JSON file holds (see `parse_json`).

    Raises:
        LifelongError: of the class `error`: it cannot be read, is damaged, or is of another shape.
    """
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}") from problem
    return parse_json(text, path, shape, error)


def parse_json(text: bytes, path: Path, shape: Any, error: type[LifelongError] = CheckpointError) -> Any:
    """JSON of a file, or of one of its lines.

    Args:
        text: what is parsed.
        path: of the file, for the sentence.
        shape: what it must be: a type or a tuple of types; `[shape]`, a list of such; `{key: shape}`, a mapping that
            has these keys, and may have others; `{str: shape}`, a mapping in which every value is such.
        error: class of the error.

    Raises:
        LifelongError: of the class `error`: it is damaged, or of another shape.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is damaged: {problem}") from problem
    check_shape(content, path, shape, error)
    return content


def check_shape(content: Any, path: Path, shape: Any, error: type[LifelongError] = CheckpointError) -> None:
    """Refuse JSON of a file that is of another shape (see `parse_json`).

    Raises:
        LifelongError: of the class `error`; names the first key that is missing or of another type.
    """
    wrong = _misfit(content, shape)
    if wrong is not None:
        raise error(f"{path} is damaged: {wrong or 'the whole'} is missing or not what it was written as")


def _misfit(content: Any, shape: Any, where: str = "") -> str | None:
    """The dotted key of the first thing that is not of its shape, or None."""
    if isinstance(shape, dict) and isinstance(content, dict):
        wanted = dict.fromkeys(content, shape[str]) if str in shape else shape
        inner = [(str(key), content.get(key, _MISSING), each) for key, each in wanted.items()]
    elif isinstance(shape, list) and isinstance(content, list):
        inner = [(str(index), item, shape[0]) for index, item in enumerate(content)]
    elif isinstance(shape, (dict, list)) or content is _MISSING:
        return where
    else:
        return None if isinstance(content, shape) else where
    found = (_misfit(item, each, f"{where}.{key}".strip(".")) for key, item, each in inner)
    return next((wrong for wrong in found if wrong is not None), None)


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
