"""Runs on Ray: connect to a cluster or start one, check that it can do the run, and let Ray Train's workers do it.

    driver (`lifelong run`)                       worker r of N (Ray Train, one actor each)
    ready: connect, preflight                     reopen the run folder at its last good checkpoint
    fit: TorchTrainer.fit in a thread     <---->  Trainer.train, gradients averaged by torch.distributed
         progress and stop, over a Board          rank 0 writes the run folder

Everything that a run needs to go on is in its own checkpoints, so a restarted worker, a restarted group and a restarted
driver all do the same: reopen the run folder. Ray is imported only by the functions that use it.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.agent import config as configs
from lifelong.agent.config import Config
from lifelong.agent.errors import CheckpointError, ClusterError, ConfigError, DiskError
from lifelong.agent.runtime.logging import Progress, RunLog
from lifelong.agent.runtime.machine import versions

if TYPE_CHECKING:
    from lifelong.agent.runtime.trainer import Order, Trainer

#: seconds between two looks at the Board
POLL = 0.2
#: seconds that an address may take to answer
KNOCK = 10.0
#: seconds that the nodes may take to say what they see
PATIENCE = 60.0
#: seconds that workers may take to stop once they were asked to, without a sign of life
STOP_PATIENCE = 120.0
#: seconds between two questions whether a node is about to be taken away
PREEMPTION_POLL = 5.0
#: seconds after which a collective operation gives up on a peer that is silent but not known to be dead
COLLECTIVE_TIMEOUT = 1800
#: environment variables for the processes of an own cluster
OWN_CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # processes are started when they are needed
    "RAY_worker_maximum_startup_concurrency": "8",  # and as many at a time
}


# ---- the connection --------------------------------------------------------------------------------------------------


def ray_module() -> Any:
    """The package `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths in a config mean the same on workers
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a death or an end is noticed sooner
    try:
        import ray
    except ImportError as error:
        raise ConfigError("this needs Ray; install it with: pip install 'lifelong[ray]'") from error
    return ray


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
def connect(address: str = "") -> Iterator[Any]:
    """Yield `ray`, connected; leave the cluster afterwards, and end it if it was started here.

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
    if where == "local":
        for name, value in OWN_CLUSTER.items():
            os.environ.setdefault(name, value)
    try:
        ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(f"cannot connect to the Ray cluster at {where}: {reason}") from error
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
        ConfigError: Ray is not installed.
        ClusterError: the cluster cannot be reached or is too small, a node does not see the folder or has another
            version; one sentence.
        DiskError: the folder cannot be written from here.
    """
    connection = connection or Connection(config.runtime.address)
    try:
        import ray.train.torch  # noqa: F401  (takes a second, in which the connection is made)

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
    return {"CPU": float(config.runtime.threads)} | ({"GPU": 1.0} if gpu else {})


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


# ---- between driver and workers --------------------------------------------------------------------------------------


@dataclass
class News:
    """What the driver and rank 0 know of each other."""

    step: int = 0
    task: str = ""
    performance: dict[str, float] = field(default_factory=dict)
    #: how often a group of workers has started
    starts: int = 0
    #: the driver wants the run to stop
    stop: bool = False
    #: how training ended: True at the end of the stream, False where it was stopped
    finished: bool | None = None
    #: a mistake that no restart mends: the error
    failure: Exception | None = None


class Board:
    """An actor beside the driver: rank 0 pins progress to it and reads whether to stop; it outlives the workers."""

    def __init__(self) -> None:
        self.news = News()

    def start(self) -> News:
        """A group of workers starts."""
        self.news.starts += 1
        return self.news

    def update(self, **news: Any) -> bool:
        """Pin news; returns whether to stop."""
        for name, value in news.items():
            setattr(self.news, name, value)
        return self.news.stop

    def read(self) -> News:
        """Everything."""
        return self.news


# ---- the driver ------------------------------------------------------------------------------------------------------


def fit(trainer: Trainer, progress: Progress, stop: Callable[[], bool], connection: Connection) -> bool:
    """Have Ray Train do the run that `trainer` is the plan of, over the connection of `ready`.

    Returns:
        True at the end of the stream; False if `stop()` asked to stop (a checkpoint has been saved).

    Raises:
        ClusterError: workers failed more often than runtime.max_failures, or do not answer.
        ConfigError, CheckpointError, DiskError: what a worker raised.
    """
    ray = connection.ray
    board = _start_board(ray)
    group = _Group(connection, trainer, board)
    last_sign = time.monotonic()
    news = News()
    while group.is_alive():
        group.join(POLL)
        seen, news = news, ray.get(board.read.remote())
        if news.step:
            progress.update(news.step, news.task, news.performance)
        if news != seen or not stop():
            last_sign = time.monotonic()
        if stop():
            ray.get(board.update.remote(stop=True))
        if time.monotonic() - last_sign > STOP_PATIENCE:
            raise ClusterError(f"the workers did not stop within {STOP_PATIENCE:g} s; the last checkpoint is kept")
    if news.failure is not None:
        raise news.failure
    if group.error is not None:
        raise group.error
    trainer.step = news.step
    return bool(news.finished)


def _start_board(ray: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=beside).remote()


class _Group(threading.Thread):
    """`TorchTrainer.fit` in a thread, so that the driver can go on showing progress and listening to signals."""

    def __init__(self, connection: Connection, trainer: Trainer, board: Any) -> None:
        super().__init__(daemon=True)
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from lifelong.agent.runtime.own_cluster import OwnClusterTrainer

        config, folder = trainer.config, trainer.record.folder.resolve()
        resources = worker_resources(connection.ray, config)
        self.error: ClusterError | None = None
        self.trainer = (OwnClusterTrainer if connection.own else TorchTrainer)(
            work,
            train_loop_config={
                "config": configs.to_dict(config),
                "folder": str(folder),
                "device": "cuda" if "GPU" in resources else "cpu",
                "board": board,
                "began": connection.began,
                "submitted": time.time(),
            },
            torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT),
            scaling_config=ScalingConfig(
                num_workers=config.runtime.workers, use_gpu="GPU" in resources, resources_per_worker=resources
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the class of Train V1
                name="ray",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=config.runtime.max_failures),
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        self.start()

    def run(self) -> None:
        """Fit; what went wrong is kept for the driver's thread."""
        try:
            self.trainer.fit()
        except Exception as error:  # whatever Ray raises means the same: the workers could not go on
            reasons = [str(e) for e in getattr(error, "worker_failures", {}).values()] or [str(error)]
            lines = [line.strip() for line in reasons[0].splitlines() if line.strip()]
            self.error = ClusterError(f"the workers failed: {lines[-1] if lines else type(error).__name__}")
            self.error.__cause__ = error


# ---- a worker --------------------------------------------------------------------------------------------------------


def work(settings: dict[str, Any]) -> None:
    """What every worker of Ray Train does: go on with the run in the folder until it ends or is asked to stop."""
    import ray

    from lifelong.agent.parallel import TorchWorkers
    from lifelong.agent.runtime import run

    board, entered = settings["board"], time.time()
    workers = TorchWorkers()
    news = ray.get(board.start.remote() if workers.rank == 0 else board.read.remote())
    if workers.lead(news.failure is not None):
        return  # restarted because of a mistake that it would only meet again
    config = configs.check(settings["config"])
    config.runtime.device = settings["device"]
    try:
        trainer, offset = run.reopen(config, Path(settings["folder"]), workers)
        start = (
            start_seconds(settings["began"], settings["submitted"], entered, time.time()) if news.starts == 1 else {}
        )
        reporter = Reporter(board, trainer)
        finished = run.train(
            trainer,
            offset,
            reporter,
            Orders(reporter, trainer),
            lambda *where: ClusterLog(news.starts - 1, start, *where),
        )
    except (ConfigError, CheckpointError, DiskError) as error:
        ray.get(board.update.remote(failure=type(error)(str(error))))
        raise
    if workers.rank == 0:
        ray.get(board.update.remote(step=trainer.step, finished=finished))


def start_seconds(began: float, submitted: float, entered: float, opened: float) -> dict[str, float]:
    """Seconds of a start and its parts: until Ray Train has the run, until workers run, until they have opened it."""
    return {
        "cluster/start_seconds": opened - began,
        "cluster/start_driver_seconds": submitted - began,
        "cluster/start_workers_seconds": entered - submitted,
        "cluster/start_open_seconds": opened - entered,
    }


class Reporter(Progress):
    """Progress as a worker sees it: pinned to the Board instead of shown."""

    def __init__(self, board: Any, trainer: Trainer) -> None:
        super().__init__(trainer.stream.total_steps, trainer.step, quiet=True)
        self.board, self.first = board, trainer.workers.rank == 0
        self.stop = False

    def update(self, step: int, task: str, performance: dict[str, float], force: bool = False) -> None:
        """Pin it, now and then, and see whether to stop; rank 0 only."""
        now = time.perf_counter()
        if self.first and (force or now - self.last >= POLL):
            import ray

            self.last = now
            self.stop = ray.get(self.board.update.remote(step=step, task=task, performance=performance))


class Orders:
    """What to do after a chunk, decided by rank 0 and the same on all workers.

    The workers ask together about every `POLL` seconds, not after every chunk: rank 0 says with every order how many
    chunks later the next one comes. Besides the driver's wish to stop there is Ray's warning that a node will be taken
    away: it saves a checkpoint once, and training goes on until Ray starts the workers again elsewhere.
    """

    QUESTION = 3  # all workers ask Ray together; the other numbers are orders

    def __init__(self, reporter: Reporter, trainer: Trainer) -> None:
        self.reporter, self.workers = reporter, trainer.workers
        self.polled = self.asked = time.monotonic()
        self.pause = self.left = 1  # chunks between two orders, and until the next
        self.leaving: list[str] = []

    def __call__(self) -> Order:
        """The order; a collective operation."""
        from lifelong.agent.runtime.trainer import Order

        self.left -= 1
        if self.left:
            return Order.GO_ON
        now = time.monotonic()
        chunk_seconds, self.asked = (now - self.asked) / self.pause, now
        wish = int(Order.STOP) if self.reporter.stop else int(Order.GO_ON)
        if not wish and now - self.polled > PREEMPTION_POLL:
            self.polled = now
            wish = self.QUESTION
        self.pause, wish = divmod(self.workers.lead(4 * min(2 * self.pause, 1 + int(POLL / chunk_seconds)) + wish), 4)
        self.left = self.pause
        if wish != self.QUESTION:
            return Order(wish)
        return Order.SAVE if self._node_leaves() else Order.GO_ON

    def _node_leaves(self) -> bool:
        """Whether Ray warns of a node for the first time."""
        import ray.train

        info = ray.train.get_preemption_info()
        leaving = [] if info is None else info.preempted_node_ids
        news = leaving != self.leaving
        self.leaving = leaving
        return bool(leaving) and news


class ClusterLog(RunLog):
    """The log of a Ray run: what depends on the clock has the cluster's figures with it."""

    def __init__(self, restarts: int, start: dict[str, float], folder: Path, offset: int, step: int) -> None:
        super().__init__(folder, offset, step)
        self.restarts, self.start = restarts, start

    def clock(self, step: int, scalars: dict[str, float], once: dict[str, float] | None = None) -> None:
        """Add how often the workers were started again, what the object stores hold, and once what the start took."""
        import ray

        total, free = ray.cluster_resources(), ray.available_resources()
        used = total.get("object_store_memory", 0.0) - free.get("object_store_memory", 0.0)
        figures = {"cluster/restarts": float(self.restarts), "cluster/object_store_bytes": max(used, 0.0)}
        super().clock(step, {**scalars, **figures}, self.start)
        self.start = {}
