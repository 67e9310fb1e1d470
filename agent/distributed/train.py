"""Training by Ray Train's workers: the driver hands them the run, shows their progress and tells them to stop.

    driver (`lifelong run`)                       worker r of N (Ray Train, one actor each)
    ready: connect, preflight                     reopen the run folder at its last good checkpoint
    fit: TorchTrainer.fit in a thread     <---->  Trainer.train, gradients averaged by torch.distributed
         progress and stop, over a Board          rank 0 writes the run folder

Everything that a run needs to go on is in its own checkpoints, so a restarted worker, a restarted group and a restarted
driver all do the same: reopen the run folder. Ray is imported only by the functions that use it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifelong.agent import config as configs
from lifelong.agent.distributed.cluster import Connection, worker_resources
from lifelong.agent.errors import CheckpointError, ClusterError, ConfigError, DiskError, NonFiniteError, PartError
from lifelong.agent.parallel import TorchWorkers
from lifelong.agent.runtime import changes, session
from lifelong.agent.runtime.lock import WORKER_FILE, held
from lifelong.agent.runtime.logging import RunLog
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.trainer import Order, Trainer

#: seconds between two looks at the Board
POLL = 0.2
#: seconds that workers may take to stop once they were asked to, without a sign of life
STOP_PATIENCE = 120.0
#: seconds between two questions whether a node is about to be taken away
PREEMPTION_POLL = 5.0
#: seconds after which a collective operation gives up on a peer that is silent but not known to be dead
COLLECTIVE_TIMEOUT = 1800


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


def fit(
    trainer: Trainer, progress: Progress, stop: Callable[[], bool], connection: Connection, inexact: bool = False
) -> bool:
    """Have Ray Train do the run that `trainer` is the plan of, over the connection of `ready`.

    `inexact` lets it go on with other kernels or another device than it was trained with. Where workers are started
    again on another node it goes on in any case; both is written to `changes.jsonl`.

    Returns:
        True at the end of the stream; False if `stop()` asked to stop (a checkpoint has been saved).

    Raises:
        ClusterError: workers failed more often than runtime.max_failures, or do not answer.
        ConfigError, CheckpointError, DiskError: what a worker raised.
    """
    ray = connection.ray
    board = _start_board(ray)
    group = _Group(connection, trainer, board, inexact)
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

    def __init__(self, connection: Connection, trainer: Trainer, board: Any, inexact: bool) -> None:
        super().__init__(daemon=True)
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from lifelong.agent.distributed.own_cluster import OwnClusterTrainer, OwnTorchConfig

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
                "inexact": inexact,
                "began": connection.began,
                "submitted": time.time(),
            },
            torch_config=(OwnTorchConfig if connection.own else TorchConfig)(timeout_s=COLLECTIVE_TIMEOUT),
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

    board, entered = settings["board"], time.time()
    workers = TorchWorkers()
    news = ray.get(board.start.remote() if workers.rank == 0 else board.read.remote())
    if workers.lead(news.failure is not None):
        return  # restarted because of a mistake that it would only meet again
    config = configs.check(settings["config"])
    config.runtime.device = settings["device"]
    folder = Path(settings["folder"])
    try:
        with ExitStack() as held_open:
            if workers.rank == 0:
                held_open.enter_context(held(folder, WORKER_FILE, STOP_PATIENCE))
            inexact = settings["inexact"] or news.starts > 1
            trainer, sizes = session.reopen(config, folder, workers, inexact=inexact)
            held_open.callback(trainer.close)
            if workers.rank == 0:  # the driver has recorded what else is changed
                changes.record(folder, trainer.step, [c for c in trainer.record.changes if c.kind == "inexact"])
            opened = time.time()
            start = start_seconds(settings["began"], settings["submitted"], entered, opened) if news.starts == 1 else {}
            reporter = Reporter(board, trainer)
            finished = session.train(
                trainer,
                sizes,
                reporter,
                Orders(reporter, trainer),
                lambda *where: ClusterLog(news.starts - 1, start, *where),
            )
    except (ConfigError, CheckpointError, DiskError, NonFiniteError, PartError) as error:
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

    def __init__(self, restarts: int, start: dict[str, float], folder: Path, sizes: session.Sizes) -> None:
        super().__init__(folder, sizes)
        self.restarts, self.start = restarts, start

    def clock(self, step: int, scalars: dict[str, float], once: dict[str, float] | None = None) -> None:
        """Add how often the workers were started again, what the object stores hold, and once what the start took."""
        import ray

        total, free = ray.cluster_resources(), ray.available_resources()
        used = total.get("object_store_memory", 0.0) - free.get("object_store_memory", 0.0)
        figures = {"cluster/restarts": float(self.restarts), "cluster/object_store_bytes": max(used, 0.0)}
        super().clock(step, {**scalars, **figures}, self.start)
        self.start = {}
