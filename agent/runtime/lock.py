"""Who may write into a run folder: one process at a time.

The lock is `flock` on the file `.lock` of the folder. The kernel lets go of it when the process ends, however it ends,
so a lock never outlives its holder. The file stays; what it says (process and host) counts only while it is locked.
Where a file system has no locks (some NFS), one line says so, and nothing is locked.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lifelong.agent.errors import ConfigError, DiskError
from lifelong.agent.files import PARTIAL, make_folder

FILE = ".lock"
#: held by rank 0 of Ray's workers, which may outlive for a moment the driver that holds the other
WORKER_FILE = ".lock-worker"
#: seconds between two looks at a lock that is waited for
_POLL = 0.2
_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child (a Gymnasium worker) that lives on must not hold the lock of a parent that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def held(folder: Path, file: str = FILE, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder, which exists.

    Args:
        folder: the folder.
        file: of the lock.
        patience: seconds to wait for it.

    Raises:
        ConfigError: another process holds it.
        DiskError: the folder cannot be written.
    """
    until = time.monotonic() + patience
    while (descriptor := _acquire(folder, file)) is None and time.monotonic() < until:
        time.sleep(_POLL)
    if descriptor is None:
        raise ConfigError(f"{folder} is in use by {_holder(folder, file)}; wait until that ends, or stop it")
    try:
        yield
    finally:
        _release(descriptor)


@contextmanager
def claimed(folder: Path, *, others: bool) -> Iterator[Path]:
    """A folder without a run, made if need be, and its lock. It is removed again if no run was started in it.

    Args:
        folder: the folder that is wanted.
        others: take the first free one of `folder`, `folder`-2, `folder`-3, ... instead of refusing.

    Raises:
        ConfigError: the folder holds a run, or another process holds its lock.
        DiskError: it cannot be made or written.
    """
    place, count = folder, 1
    while True:
        made = _make(place)
        descriptor = _acquire(place)
        if descriptor is not None and not (_used(place) if others else _holds_run(place)):
            break
        if descriptor is not None:
            _release(descriptor)
        if not others:
            if descriptor is None:
                raise ConfigError(f"{place} is in use by {_holder(place)}; give another --out")
            raise ConfigError(f"{place} already holds a run; use `lifelong resume {place}`, --resume, or another --out")
        count += 1
        place = folder.with_name(f"{folder.name}-{count}")
    try:
        yield place
    finally:
        if not _holds_run(place):
            _remove(made, place)
        _release(descriptor)


def _holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or (folder / "checkpoints").exists()


def _used(folder: Path) -> bool:
    """Whether there is more in a folder than what a start leaves behind that was killed at once."""
    return any(name != FILE and not name.endswith(PARTIAL) for name in os.listdir(folder))


def _make(folder: Path) -> list[Path]:
    """Make a folder; those that were not there before, innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    return made


def _remove(made: list[Path], folder: Path) -> None:
    """Remove the folders that were made, as far as nothing else is in them."""
    try:
        if made and os.listdir(folder) == [FILE]:
            (folder / FILE).unlink()
        for path in made:
            path.rmdir()
    except OSError:
        pass  # somebody else has put something there


def _acquire(folder: Path, file: str = FILE) -> int | None:
    """The descriptor that holds the lock of a folder; None if another process holds it."""
    path = folder / file
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # it is emptied below
        except OSError as error:
            raise DiskError(f"cannot write to {folder}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            print(
                f"note: the file system of {folder} has no locks; no second process may write there now",
                file=sys.stderr,
            )
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # whoever held it has just removed the file
        _make(folder)
    _held.add(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _release(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _holder(folder: Path, file: str = FILE) -> str:
    """Who holds the lock of a folder, for people."""
    try:
        holder = json.loads((folder / file).read_text())
        return f"process {int(holder['pid'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
