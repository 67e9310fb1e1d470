"""Errors that the command line turns into one sentence and an exit code."""

from __future__ import annotations

from collections.abc import Iterable

from lifelong.envs.errors import EnvError, LifelongError, optional, unknown_name

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DiskError",
    "EnvError",
    "ExportError",
    "LedgerError",
    "LifelongError",
    "NonFiniteError",
    "PartError",
    "choice",
    "optional",
    "unknown_name",
]


class ConfigError(LifelongError, ValueError):
    """A wrong config or command: one sentence that names the key, the value and the nearest valid choice (exit 2)."""


class CheckpointError(LifelongError, ValueError):
    """A run or checkpoint that cannot be read, as one sentence (exit 2)."""


class ClusterError(LifelongError, RuntimeError):
    """A Ray cluster that cannot be reached, is too small or failed, as one sentence (exit 1)."""


class LedgerError(LifelongError, RuntimeError):
    """A sweep whose ledger shows that its protocol was broken, as one sentence (exit 1)."""


class NonFiniteError(LifelongError, RuntimeError):
    """A NaN or an infinity where a number must be, as one sentence; the last checkpoint is kept (exit 1)."""


class PartError(LifelongError, RuntimeError):
    """Code of an environment or of another part raised: file, line and message in one sentence (exit 1)."""


class ExportError(LifelongError, RuntimeError):
    """An exported policy that is not the same as ours, as one sentence; no file is written (exit 1)."""


class DiskError(LifelongError, RuntimeError):
    """Something that cannot be written, as one sentence; what was written before is kept (exit 1)."""


def choice(what: str, value: object, valid: Iterable[str]) -> str:
    """Return `value` if it is one of `valid`, else raise the sentence that names the nearest one.

    Raises:
        ConfigError: `value` is not valid.
    """
    names = list(valid)
    if not isinstance(value, str) or value not in names:
        raise ConfigError(unknown_name(what, str(value), names))
    return value
