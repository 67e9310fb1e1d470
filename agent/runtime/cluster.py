"""The Ray cluster a run uses: connect to it, or start one that ends with this process. Ray is imported only here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent.errors import ClusterError, ConfigError


def ray_module() -> Any:
    """The package `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("this needs Ray; install it with: pip install 'lifelong[ray]'") from error
    return ray


def resolve_address(address: str) -> str:
    """What `ray.init` gets: the config's address, else RAY_ADDRESS, else a cluster of our own.

    Ray by itself would join whatever Ray was last started on this machine, which may be somebody else's.
    """
    return address or os.environ.get("RAY_ADDRESS", "") or "local"


@contextmanager
def connect(address: str = "") -> Iterator[Any]:
    """Yield `ray`, connected; leave the cluster afterwards, and end it if it was started here.

    Raises:
        ConfigError: Ray is not installed.
        ClusterError: the cluster cannot be reached.
    """
    ray = ray_module()
    where = resolve_address(address)
    if ray.is_initialized():  # the caller's own connection (tests, notebooks)
        yield ray
        return
    try:
        ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(f"cannot connect to the Ray cluster at {where}: {reason}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
