"""Keeps shared objects between starts, in a folder that nobody but the user can write.

Loading a shared object runs its constructors, so one is taken only if it is certain that this user made it: folder,
object and digest are opened without following links, belong to the user and cannot be written by others, and the object
is what its digest says. A digest alone protects against damage (a full disk, a copy that stopped), not against people:
who can write the object can write the digest. What was checked is loaded through its open descriptor, so nobody can put
something else in its place in between.

The folder is lifelong/kernels below $XDG_CACHE_HOME, or ~/.cache; a path that is not absolute is not followed, as the
XDG base directory specification says.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import pwd
import secrets
import stat
import threading
from contextlib import suppress
from pathlib import Path

OURS = ("lifelong", "kernels")
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC
_log = logging.getLogger("lifelong.kernels")
_unsaid = threading.Lock()  # is taken by the one log line of a process


def path() -> Path:
    """The folder, whether or not it is there and may be used.

    Raises:
        OSError: there is no absolute path for it.
    """
    candidates = [os.environ.get("XDG_CACHE_HOME", ""), os.path.join(os.environ.get("HOME", ""), ".cache")]
    with suppress(KeyError):  # a user without an entry, as in some containers
        candidates.append(os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, ".cache"))
    base = next((each for each in candidates if os.path.isabs(each)), None)
    if base is None:
        raise OSError("neither XDG_CACHE_HOME nor HOME is an absolute path")
    return Path(base, *OURS)


def load(name: str) -> ctypes.CDLL | None:
    """The shared object that is kept as `name`; None if there is none that can be trusted and loaded."""
    folder = _folder()
    if folder is None:
        return None
    try:
        with open(_open(folder, f"{name}.sha256"), "rb") as file:
            expected = file.read()
        binary = _open(folder, name)
        if _digest(name, _content(binary)) != expected:
            os.close(binary)
            return None
        return _load(binary)
    except OSError:
        return None


def keep(name: str, built: Path) -> ctypes.CDLL:
    """Load the shared object `built`, after it was put into the folder as `name` if that is possible.

    Raises:
        OSError: it cannot be read or loaded.
    """
    binary = os.open(built, os.O_RDONLY | _OPEN)
    content, folder = _content(binary), _folder()
    if folder is None:
        return _load(binary)
    try:
        # the digest comes last: one that is there belongs to an object that is whole
        _write(folder, name, content)
        _write(folder, f"{name}.sha256", _digest(name, content))
        os.fsync(folder)
        kept = _open(folder, name)
    except OSError as error:
        _not_kept(f"cannot write to {path()}: {error.strerror or error}")
        return _load(binary)
    os.close(binary)
    try:
        return _load(kept)
    except OSError:
        for each in (name, f"{name}.sha256"):
            os.unlink(each, dir_fd=folder)
        raise


@functools.cache
def _folder() -> int | None:
    """A descriptor of the folder, made if need be; None after one log line if it cannot be trusted."""
    try:
        place = path()
        base = place.parents[len(OURS) - 1]
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        for name in OURS:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=folder)
            base, above = base / name, folder
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=above)
            os.close(above)
            _check(os.fstat(folder), base)
            with suppress(OSError):  # that others can read it does no harm
                os.fchmod(folder, 0o700)
        return folder
    except OSError as error:
        _not_kept(f"cannot use {error.filename or 'the cache'}: {error.strerror}" if error.strerror else str(error))
        return None


def _not_kept(reason: str) -> None:
    if _unsaid.acquire(blocking=False):
        _log.warning("compiled CPU kernels are not kept for the next start, which compiles them again: %s", reason)


def _check(status: os.stat_result, what: Path | str) -> None:
    """Raises OSError unless it belongs to the user and cannot be written by others."""
    if status.st_uid != os.geteuid():
        raise OSError(f"{what} belongs to another user")
    if status.st_mode & 0o022:
        raise OSError(f"{what} can be written by others; make it yours with chmod 700")


def _open(folder: int, name: str) -> int:
    """A descriptor of a regular file of the user's. Raises OSError."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        _check(status, name)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name} is not a file")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _digest(name: str, content: bytes) -> bytes:
    """What is kept beside the object, in the format of `sha256sum --check`."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def _load(descriptor: int) -> ctypes.CDLL:
    """Load the object that is open. Raises OSError.

    The descriptor stays open with the object: the dynamic linker knows objects by their path, which names it.
    """
    try:
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise


def _write(folder: int, name: str, content: bytes) -> None:
    """Put a file into the folder, whole or not at all. Raises OSError."""
    draft = f".{name}-{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(draft, dir_fd=folder)
        raise
