"""What keeps an own cluster to this machine and to this user: its settings, and the token that its processes ask for.

Ray runs what anybody sends to its ports, and by itself opens them on every address of the machine and writes its token
where other users can read it.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKEN = "RAY_AUTH_TOKEN_PATH"
#: environment variables of an own cluster's processes
NEEDED = {
    # Ray's name for it; what it does is that 127.0.0.1 counts as this node's address, and every server listens there
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "NCCL_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
#: settings that the user may overrule
PREFERRED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # processes are started when they are needed
    "RAY_worker_maximum_startup_concurrency": "8",  # and as many at a time
}
#: what Ray sets by itself while a cluster of its own starts
SET_BY_RAY = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@contextmanager
def settings(ray: Any) -> Iterator[None]:
    """In this context `ray.init` starts a cluster that only this machine and this user can reach.

    Nothing of it remains afterwards, so that a cluster that the user names next is met with the user's own settings.
    """
    constants = ray._private.ray_constants
    before = {name: os.environ.get(name) for name in (*NEEDED, *PREFERRED, *SET_BY_RAY, TOKEN)}
    clusters = constants.ENABLE_RAY_CLUSTER
    with tempfile.TemporaryDirectory(prefix="lifelong-ray-") as folder:  # the user's alone
        os.environ.pop("RAY_AUTH_TOKEN", None)  # it would come before the file
        os.environ.update({**PREFERRED, **{k: v for k, v in before.items() if v is not None and k in PREFERRED}})
        os.environ.update({**NEEDED, TOKEN: str(_token(Path(folder)))})
        constants.ENABLE_RAY_CLUSTER = False  # was read from the environment when Ray was imported
        _read_again(ray)
        try:
            yield
        finally:
            constants.ENABLE_RAY_CLUSTER = clusters
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            _read_again(ray)


def private_file() -> Path:
    """A new path in the folder of the own cluster's token, which goes when the cluster ends."""
    return Path(os.environ[TOKEN]).with_name(secrets.token_hex(8))


def _token(folder: Path) -> Path:
    path = folder / "token"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def _read_again(ray: Any) -> None:
    """Have Ray forget what it has read of environment and token."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
