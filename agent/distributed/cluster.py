"""Connect to a Ray cluster or start one, and check that it can do the run before anything is started.

Ray is imported only by the functions that use it, and torch by none, so a connection is made while torch is imported.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lifelong.agent.config import Config
from lifelong.agent.distributed import loopback
from lifelong.agent.errors import ClusterError, ConfigError, DiskError, optional
from lifelong.agent.runtime.machine import versions

#: seconds that an address may take to answer
KNOCK = 10.0
#: seconds that the nodes may take to say what they see
PATIENCE = 60.0
#: what is said for a process that can say nothing any more
LAST_WORDS = (
    "lifelong: this process or Ray's raylet on this machine was killed; what came after the last checkpoint is lost, "
    "the rest can be resumed"
)


# ---- the connection --------------------------------------------------------------------------------------------------


def ray_module() -> Any:
    """The package `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths in a config mean the same on workers
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a death or an end is noticed sooner
    return optional("ray", "what runs on several processes or machines", "ray", ConfigError)


def resolve_address(address: str) -> str:
    """What `ray.init` gets: the config's address, else RAY_ADDRESS, else a cluster of our own.

    Ray by itself would join whatever Ray was last started on this machine, which may be somebody else's.

    Raises:
        ConfigError: an address of another form than local, auto or host:port.
    """
    where = address or os.environ.get("RAY_ADDRESS", "") or "local"
    host, _, port = where.rpartition(":")
    if where not in ("local", "auto") and not (host and port.isdigit() and "/" not in where):
        raise ConfigError(f"the address of the Ray cluster is {where!r}; it must be local, auto or host:port")
    return where


def knock(host: str, port: int, name: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try for minutes.

    Raises:
        ClusterError: nobody answers; `name` is how the user called the address.
    """
    try:
        socket.create_connection((host, port), timeout=KNOCK).close()
    except OSError as error:
        raise ClusterError(f"cannot connect to the Ray cluster at {name}: {error.strerror or error}") from error


@contextmanager
def last_words() -> Iterator[None]:
    """Have somebody say `LAST_WORDS` if this process ends before it leaves this context.

    Ray ends a process without a word, and without running any more of its Python, when the raylet of its node is gone.
    """
    script = 'read -r _ || printf "%s\\n" "$0" >&2'
    listener = subprocess.Popen(
        ["/bin/sh", "-c", script, LAST_WORDS], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        listener.communicate(b"\n")


@contextmanager
def connect(address: str = "") -> Iterator[Any]:
    """Yield `ray`, connected; leave the cluster afterwards, and end it if it was started here.

    A cluster that is started here listens on this machine's loopback address only, and asks for a token of its own.

    Raises:
        ConfigError: Ray is not installed.
        ClusterError: the cluster cannot be reached.
    """
    ray = ray_module()
    if ray.is_initialized():  # the caller's own connection (tests, notebooks)
        yield ray
        return
    where = resolve_address(address)
    host, _, port = where.rpartition(":")
    if host:
        knock(host.strip("[]"), int(port), where)
    with loopback.settings(ray) if where == "local" else nullcontext(), last_words():
        address_of_node = {"_node_ip_address": "127.0.0.1"} if where == "local" else {}
        try:
            ray.init(
                address=where, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL", **address_of_node
            )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ClusterError(f"cannot connect to the Ray cluster at {where}: {reason}") from error
        ray._private.worker._worker_logs_enabled = False  # deaths are told in a sentence, not in pages of raylet.out
        try:
            yield ray
        finally:
            ray.shutdown()


class Connection(threading.Thread):
    """A connection to a cluster, made in a thread while the caller imports torch and builds the plan.

    The thread lives as long as the connection, because what Ray starts ends with the thread that started it.

    Args:
        address: see `connect`.

    Attributes:
        ray: the package; connected after `wait`.
        own: whether the cluster is started here, and ends with the connection.
        began: when, in seconds since the epoch.

    Raises:
        ConfigError: Ray is not installed, or the address has another form than local, auto or host:port.
    """

    def __init__(self, address: str = "") -> None:
        super().__init__(daemon=True)
        self.began = time.time()
        self.ray, self.address = ray_module(), address
        self.own = not self.ray.is_initialized() and resolve_address(address) == "local"
        self.error: Exception | None = None
        self.decided, self.over = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        """Connect, and disconnect after `close`."""
        try:
            with connect(self.address):
                self.decided.set()
                self.over.wait()
        except Exception as error:  # raised again by `wait`
            self.error = error
        finally:
            self.decided.set()

    def wait(self) -> None:
        """Wait until it is made.

        Raises:
            ClusterError: the cluster cannot be reached.
        """
        self.decided.wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Leave the cluster, and end it if it is an own one; once more does nothing."""
        self.over.set()
        self.join()


def needed(config: Config) -> bool:
    """Whether Ray Train's workers do the learning. Environment runners feed a learner in this process."""
    return config.runtime.backend == "ray" and not config.runtime.env_runners


@contextmanager
def begun(config: Config) -> Iterator[Connection | None]:
    """A connection that is being made if the run of `config` needs one; it is closed at the end."""
    if not needed(config):
        yield None
        return
    connection = Connection(config.runtime.address)
    try:
        yield connection
    finally:
        connection.close()


# ---- preflight -------------------------------------------------------------------------------------------------------


@contextmanager
def ready(config: Config, folder: Path, connection: Connection | None = None) -> Iterator[Connection]:
    """A connection to a cluster that can do the run in `folder`; everything is looked at before anything is started.

    Args:
        config: of the run.
        folder: run folder.
        connection: made, or being made, by the caller.

    Raises:
        ConfigError: Ray, or its part that trains, is not installed.
        ClusterError: the cluster cannot be reached or is too small, a node does not see the folder or has another
            version; one sentence.
        DiskError: the folder cannot be written from here.
    """
    connection = connection or Connection(config.runtime.address)
    try:
        # takes a second, in which the connection is made
        optional("ray.train.torch", "runtime.backend=ray", "ray", ConfigError)
        connection.wait()
        check_resources(connection.ray, config)
        check_nodes(connection.ray, folder)
        yield connection
    finally:
        connection.close()


def worker_resources(ray: Any, config: Config) -> dict[str, float]:
    """What Ray reserves for a worker: a CPU a thread, and a GPU if the run is to use them and there are any."""
    device = config.runtime.device
    gpu = device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    return {"CPU": float(max(1, config.runtime.threads))} | ({"GPU": 1.0} if gpu else {})


def check_resources(ray: Any, config: Config) -> None:
    """Refuse a cluster whose nodes cannot hold the workers; Ray would wait for ever.

    Raises:
        ClusterError: one sentence with what is needed and what there is.
    """
    runtime = config.runtime
    bundle = worker_resources(ray, config)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(node.get(name, 0.0) // amount for name, amount in bundle.items())) for node in nodes)
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    if room >= runtime.workers:
        return
    has = f"{cpus:g} CPUs and {sum(node.get('GPU', 0.0) for node in nodes):g} GPUs on {len(nodes)} node(s)"
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    raise ClusterError(
        f"the run needs {runtime.workers} worker(s) of {each} each, but the Ray cluster has {has}; lower "
        "runtime.workers or runtime.threads, or add nodes"
    )


def check_nodes(ray: Any, folder: Path) -> None:
    """Refuse nodes that do not see the run folder, or have other versions than this process.

    Raises:
        ClusterError: one sentence that names the node.
        DiskError: the folder cannot be written from here.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    nonce = folder / f".nonce-{secrets.token_hex(8)}"
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        nonce.touch()
    except OSError as error:
        raise DiskError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        for node, answer in zip(others, _ask(ray, others, str(nonce.resolve())), strict=True):
            _check_answer(node["NodeManagerAddress"], folder, answer)
    finally:
        nonce.unlink(missing_ok=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _ask(ray: Any, nodes: list[dict[str, Any]], path: str) -> Iterator[Any]:
    """What `_look` says on every node, or the exception instead."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(path)
        for node in nodes
    ]
    deadline = time.monotonic() + PATIENCE
    for answer in asked:
        try:
            yield ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.RayError as error:
            yield error


def _look(path: str) -> dict[str, Any]:
    """Runs on a node: whether the file is there, whether one can be written beside it, and the versions."""
    probe = Path(f"{path}-{secrets.token_hex(8)}")
    try:
        probe.touch()
        probe.unlink()
        problem = "" if Path(path).exists() else "it does not see the files of this machine there"
    except OSError as error:
        problem = str(error.strerror)
    return {"problem": problem, "versions": versions()}


def _check_answer(address: str, folder: Path, answer: Any) -> None:
    if isinstance(answer, Exception):
        reason = str(answer).strip().splitlines()[-1]
        raise ClusterError(f"node {address} of the Ray cluster cannot run lifelong: {reason}") from answer
    if answer["problem"]:
        raise ClusterError(
            f"node {address} cannot use the run folder {folder.resolve()}: {answer['problem']}; put it on storage that "
            "every node has, with --out"
        )
    here = versions()
    for package in ("lifelong", "torch"):
        if answer["versions"][package] != here[package]:
            raise ClusterError(
                f"node {address} has {package} {answer['versions'][package]}, this machine {here[package]}; install "
                "the same version"
            )
