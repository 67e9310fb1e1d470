"""The border to code that is not ours: where an error of it came from, in one line."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from pathlib import Path

from lifelong.envs.errors import LifelongError

#: a longer message is cut
LONGEST = 160

_ROOT = Path(__file__).resolve().parents[1]
_OURS = tuple(f"{_ROOT / floor}/" for floor in ("agent", "envs", "replay", "kernels", "configs"))
_LIBRARIES = ("site-packages", "dist-packages", "/lib/python")


@dataclass
class Restarts:
    """How often environments that raised may be made anew in a run, and how often they were."""

    limit: int = 0
    count: int = 0

    def allow(self, what: str, copy: int, problem: str) -> bool:
        """Whether the copy of `what` that met `problem` goes on with a new environment; if so, that is logged."""
        if self.count >= self.limit:
            return False
        self.count += 1
        logging.getLogger("lifelong").warning(
            "%s, copy %d: %s; it goes on with a new environment (%d of %d)", what, copy, problem, self.count, self.limit
        )
        return True


def blame(error: BaseException, place: str = "") -> str:
    """`file:line: Type: message` of the innermost frame of the user's code, else `place: Type: message`, where `place`
    is the innermost frame of all if it is not given."""
    frames = traceback.extract_tb(error.__traceback__)
    cause = error
    while not frames and cause.__cause__ is not None:
        cause = cause.__cause__
        frames = traceback.extract_tb(cause.__traceback__)
    users = [frame for frame in frames if not _is_ours(frame.filename)]
    message = " ".join(str(error).split()) or "no message"
    where = f"{users[-1].filename}:{users[-1].lineno}: " if users else ""
    if isinstance(error, SyntaxError) and error.filename:  # no frame is in a file that cannot be read
        where, message = f"{error.filename}:{error.lineno}: ", error.msg
    elif not users and (place or frames):
        where = f"{place or f'{frames[-1].filename}:{frames[-1].lineno}'}: "
    if len(message) > LONGEST:
        message = message[: LONGEST - 1] + "…"
    return f"{where}{type(error).__name__}: {message}"


def told(error: BaseException) -> str:
    """What is to be said of any error: the sentence of one of ours, else `blame`."""
    return str(error) if isinstance(error, LifelongError) else blame(error)


def _is_ours(filename: str) -> bool:
    path = str(Path(filename).resolve())
    return filename.startswith("<") or path.startswith(_OURS) or any(name in path for name in _LIBRARIES)
