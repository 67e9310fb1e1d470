"""Errors that a user of the environments can cause."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class LifelongError(Exception):
    """What a user can cause or must know: one sentence, without a traceback. The base of every error of `lifelong`.

    Whatever went into the sentence, it is shown in at most `LONGEST` characters, all of them printable.
    """

    LONGEST = 285

    def __str__(self) -> str:
        text = "".join(c if c.isprintable() else "?" for c in " ".join(super().__str__().split()))
        return text if len(text) <= self.LONGEST else f"{text[: self.LONGEST - 103]}...{text[-100:]}"


class EnvError(LifelongError, ValueError):
    """A wrong environment name, parameter or call, as one sentence for the user."""


class EnvStepError(EnvError):
    """Code of an environment raised, or returned what it must not, while it was reset or stepped."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for an unknown `name`: what it is, the nearest valid name, and all valid names."""
    names = sorted(known)
    shown = name if len(name) <= 60 else name[:57] + "..."
    return f"unknown {what} {shown!r}{nearest(name, names)}; valid: {', '.join(names) or 'none'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` if a known name is near, else nothing."""
    near = get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def optional(module: str, user: str, extra: str, error: type[LifelongError] = EnvError) -> Any:
    """Import `module`, which belongs to a package that not everybody installs.

    Args:
        module: dotted name.
        user: what needs it, the subject of the sentence.
        extra: the extra of `lifelong` that brings it.
        error: class of the error.

    Raises:
        LifelongError: of the class `error`: it, or a module that it needs, cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        package = module.partition(".")[0]
        hint = f"pip install 'lifelong[{extra}]'"
        raise error(f"{user} needs {package}, which cannot be imported; {hint} ({str(problem)[:120]})") from problem
