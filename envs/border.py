"""The border to code that is not ours: where an error of it came from, in one line."""

from __future__ import annotations

import traceback
from pathlib import Path

from lifelong.envs.errors import LifelongError

#: a longer message is cut
LONGEST = 160

_ROOT = Path(__file__).resolve().parents[1]
_OURS = tuple(f"{_ROOT / floor}/" for floor in ("agent", "envs", "replay", "kernels", "configs"))
_LIBRARIES = ("site-packages", "dist-packages", "/lib/python")


def blame(error: BaseException) -> str:
    """`file:line: Type: message` of the innermost frame of the user's code, else of the innermost frame of all."""
    frames = traceback.extract_tb(error.__traceback__)
    cause = error
    while not frames and cause.__cause__ is not None:
        cause = cause.__cause__
        frames = traceback.extract_tb(cause.__traceback__)
    users = [frame for frame in frames if not _is_ours(frame.filename)]
    message = " ".join(str(error).split()) or "no message"
    if len(message) > LONGEST:
        message = message[: LONGEST - 1] + "…"
    text = f"{type(error).__name__}: {message}"
    place = (users or list(frames))[-1:]
    return f"{place[0].filename}:{place[0].lineno}: {text}" if place else text


def told(error: BaseException) -> str:
    """What is to be said of any error: the sentence of one of ours, else `blame`."""
    return str(error) if isinstance(error, LifelongError) else blame(error)


def _is_ours(filename: str) -> bool:
    path = str(Path(filename).resolve())
    return filename.startswith("<") or path.startswith(_OURS) or any(name in path for name in _LIBRARIES)
