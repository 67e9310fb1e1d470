"""Runs on Ray: the same run as inline, one sentence for what cannot be, and the death table.

Every death test compares with a group of plain processes that nobody killed (gloo, no Ray): metrics.jsonl,
evaluation.npz and the last checkpoint are the same bit for bit, so nothing is lost and nothing is written twice.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lifelong.agent import config as configs
from lifelong.agent.cli import main
from lifelong.agent.distributed import cluster, loopback, train
from lifelong.agent.errors import ClusterError, ConfigError
from lifelong.agent.parallel import TorchWorkers, Workers
from lifelong.agent.runtime import checkpoint, session
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.trainer import Order
from tests.agent.group import in_group
from tests.agent.runtime.test_kill import ROOT, assert_equal
from tests.agent.support import THREE_TASKS

pytest.importorskip("ray")

CONFIG = f"""{THREE_TASKS}
strategy: [clear, ewc]
runtime: {{device: cpu, backend: ray, workers: 2}}
"""
PYTHONPATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
#: seconds from a death to the next chunk of training
RESUME_LIMIT = 60.0
#: seconds for anything that must happen at all on a busy machine
LONG = 240.0


# ---- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process that ran at some time: its start tells it from a later one of the same number."""

    pid: int
    parent: int
    started: str
    command: str

    def runs(self) -> bool:
        return any(p.pid == self.pid and p.started == self.started for p in processes())

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def processes() -> Iterator[Process]:
    """All processes that are no zombies."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it ended meanwhile
        if fields[0] != "Z":
            yield Process(int(path.name), int(fields[1]), fields[19], command)


def below(pid: int) -> list[Process]:
    """The processes that `pid` started, and those that they started, and so on."""
    everyone = list(processes())
    found, parents = [], {pid}
    while parents:
        children = [p for p in everyone if p.parent in parents]
        found += children
        parents = {p.pid for p in children}
    return found


def train_workers(pid: int) -> list[Process]:
    """The workers of Ray Train below `pid`."""
    return [p for p in below(pid) if "RayTrainWorker" in p.command]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened within {seconds:g} s"
        time.sleep(0.2)


COMMANDS: list[Command] = []


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """A test that fails leaves no process either."""
    yield
    while COMMANDS:
        command = COMMANDS.pop()
        for process in [*below(command.pid), *command.started]:
            if process.runs():
                process.kill()
        command.process.kill()
        command.process.wait()


class Command:
    """`lifelong ...` in a process of its own, which remembers every process that it starts."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lifelong.agent.cli", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self.process.pid
        self.started: set[Process] = set()
        COMMANDS.append(self)

    def wait_for(self, condition: Callable[[], Any], seconds: float = LONG) -> Any:
        """Wait until `condition()` holds while the command runs; what it returned."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            self.started |= set(below(self.pid))
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, f"nothing happened within {seconds:g} s"
            time.sleep(0.1)
        self.started |= set(below(self.pid))
        return value

    def finish(self, code: int | None = 0) -> str:
        """Wait for the end, check the exit code and that nothing is left; the output."""
        if self.process.poll() is None and code != -signal.SIGKILL:
            end = time.monotonic() + LONG
            while self.process.poll() is None and time.monotonic() < end:
                self.started |= set(below(self.pid))
                time.sleep(0.2)
        output, _ = self.process.communicate(timeout=10)
        assert self.process.returncode == code, output
        until(lambda: not any(p.runs() for p in self.started), 120)  # after SIGKILL Ray's agents notice in a minute
        return output


def steps_of(folder: Path) -> list[int]:
    """The steps of the lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def newest(folder: Path) -> int:
    """The step of the newest checkpoint."""
    saved = checkpoint.checkpoints(folder / "checkpoints")
    return int(saved[-1].name) if saved else 0


# ---- the run that nobody killed --------------------------------------------------------------------------------------


def whole_run(workers: TorchWorkers, folder: Path) -> None:
    """The run by plain processes."""
    trainer, sizes = session.reopen(configs.load(str(folder / "config.yaml")), folder, workers)
    progress = Progress(trainer.stream.total_steps, quiet=True)
    assert session.train(trainer, sizes, progress, lambda: Order.GO_ON)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(configs.to_yaml(configs.load(str(config))))
    in_group(2, folder, {"run": whole_run})
    return folder / "run"


def assert_same_run(folder: Path, whole: Path) -> None:
    """metrics.jsonl and evaluation.npz byte for byte, and every file of the last checkpoint bit for bit."""
    assert steps_of(folder) == steps_of(whole)
    for name in ("metrics.jsonl", "evaluation.npz"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (checkpoint.checkpoints(f / "checkpoints")[-1] for f in (folder, whole))
    files = sorted(path.name for path in theirs.glob("*.pt"))
    assert files == ["shard-0.pt", "shard-1.pt", "state.pt"]
    for name in files:
        assert_equal(*(without_address(torch.load(path / name, weights_only=True)) for path in (ours, theirs)))


def without_address(state: dict[str, Any]) -> dict[str, Any]:
    """A part of a checkpoint, without the address of the cluster that made it."""
    state.get("config", {"runtime": {}})["runtime"].pop("address", None)
    return state


def start(folder: Path, *arguments: object) -> tuple[Command, float, int]:
    """A run up to its first checkpoint: the command, the seconds that took and the checkpoint's step."""
    began = time.monotonic()
    command = Command(*arguments)
    at = command.wait_for(lambda: newest(folder))
    return command, time.monotonic() - began, at


def resumed_in_time(command: Command, folder: Path, at: int, starting: float, died: float) -> None:
    """Training goes on: a checkpoint is written within a minute of the death.

    On a machine so busy that even a start takes long, within twice the time of that.
    """
    limit = max(RESUME_LIMIT, 2 * starting)
    command.wait_for(lambda: newest(folder) > at, limit + 30)
    assert time.monotonic() - died < limit


# ---- the same run ----------------------------------------------------------------------------------------------------


def test_one_worker_is_the_inline_run_bit_for_bit_and_each_resumes_the_other(config: Path, tmp_path: Path) -> None:
    ray, inline = tmp_path / "ray", tmp_path / "inline"
    Command("run", config, "--out", inline, "runtime.backend=inline", "runtime.workers=1").finish()
    command = Command("run", config, "--out", ray, "runtime.workers=1")
    command.wait_for(lambda: newest(ray) > 0)
    command.process.send_signal(signal.SIGTERM)  # the driver: all workers stop at one step
    output = command.finish(3)
    assert "checkpoint saved" in output and "lifelong resume" in output
    assert 0 < newest(ray) < 30000
    Command("resume", ray, "runtime.backend=inline").finish()
    for name in ("metrics.jsonl", "evaluation.npz"):
        assert (ray / name).read_bytes() == (inline / name).read_bytes(), name
    ours, theirs = (checkpoint.load(f / "checkpoints")[0] for f in (ray, inline))
    assert_equal(*({k: v for k, v in state.items() if k != "manifest"} for state in (ours, theirs)))


def test_the_inline_backend_and_help_never_import_ray(config: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lifelong.agent.cli import main; main(sys.argv[1:]); "
        "sys.exit(any(name.split('.')[0] == 'ray' for name in sys.modules))"
    )
    small = ["runtime.backend=inline", "runtime.workers=1", "stream.steps_per_task=64", "--quiet"]
    for arguments in (["run", str(config), "--out", str(tmp_path / "run"), *small], ["show", "quickstart"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


# ---- who can reach it ------------------------------------------------------------------------------------------------

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def listeners(pid: int) -> dict[str, str]:
    """Where `pid` and all below it listen, as /proc/net has it in hexadecimal (address:port), with the command."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path("/proc/net", name).read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]": row[1] for row in rows if row[3] == "0A"}
    found = {}
    for process in [*below(pid), Process(pid, 0, "", "driver")]:
        for path in Path(f"/proc/{process.pid}/fd").glob("*"):
            with suppress(OSError):  # closed meanwhile
                found |= {where: process.command for where in [sockets.get(os.readlink(path))] if where}
    return found


def assert_reached_from_here_by_this_user_only(pid: int) -> Path:
    """All that the own cluster of the driver `pid` listens on is loopback, and its token is the user's; the token."""
    found = listeners(pid)
    for name in ("driver", "raylet", "gcs_server", "DashboardAgent", "RayTrainWorker"):
        assert any(name in each for each in found.values()), name
    assert {where: each for where, each in found.items() if where.rpartition(":")[0] not in LOOPBACK} == {}
    rows = Path(f"/proc/{train_workers(pid)[0].pid}/environ").read_text().split("\0")
    environment = dict(row.split("=", 1) for row in rows if row)
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert environment["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in environment
    for path, mode in ((token, 0o600), (token.parent, 0o700)):
        assert path.stat().st_mode & 0o777 == mode and path.stat().st_uid == os.getuid()
    return token


# ---- deaths ----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_nothing_but_time(config: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command, starting, at = start(folder, "run", config, "--out", folder)
    victim = command.wait_for(lambda: train_workers(command.pid))[-1]
    token = assert_reached_from_here_by_this_user_only(command.pid)  # here, as every start of Ray takes long
    actors = {p.command.split("::")[1].split()[0] for p in below(command.pid) if p.command.startswith("ray::")}
    assert not {"PlacementGroupCleaner", "PreemptionWatcher", "DatasetManager"} & actors
    assert not any("Autoscaling" in name for name in actors)  # nothing that serves clusters that live on
    victim.kill()
    resumed_in_time(command, folder, at, starting, time.monotonic())
    output = command.finish()
    assert not token.parent.exists()
    assert "average performance" in output  # the report of any run
    assert_same_run(folder, whole)
    timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert timing[-1]["cluster/restarts"] == 1
    parts = [timing[0][f"cluster/start_{part}_seconds"] for part in ("driver", "workers", "open")]
    assert sum(parts) == pytest.approx(timing[0]["cluster/start_seconds"], abs=1e-3) and min(parts) > 0
    assert not any("start_seconds" in name for line in timing[1:] for name in line)
    assert {"speed/worker_0/env_steps_per_second", "speed/worker_1/waiting"} <= timing[-1].keys()


@pytest.fixture
def three_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of a head and two nodes on this machine, one CPU each."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster.ray_module()
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


@pytest.mark.slow
def test_a_killed_node_costs_nothing_but_time(config: Path, whole: Path, three_nodes: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command, starting, at = start(folder, "run", config, "--out", folder, f"runtime.address={three_nodes.address}")
    raylets = [node.all_processes["raylet"][0].process for node in three_nodes.worker_nodes]
    raylet = next(process for process in raylets if train_workers(process.pid))
    lost = below(raylet.pid)
    raylet.kill()
    raylet.wait()  # a zombie counts as alive to the workers below it
    resumed_in_time(command, folder, at, starting, time.monotonic())
    command.finish()
    assert_same_run(folder, whole)
    ray_train = ("RayTrainWorker", "TrainController", "Board")
    until(lambda: not any(p.runs() for p in lost))
    until(lambda: not any(name in p.command for p in below(os.getpid()) for name in ray_train))


@pytest.mark.slow
def test_a_node_that_will_be_taken_away_saves_a_checkpoint_at_once(
    config: Path, three_nodes: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    never = ("checkpoint.every=1000000000", "stream.steps_per_task=10000000")
    command = Command("run", config, "--out", folder, f"runtime.address={three_nodes.address}", *never)
    command.wait_for(lambda: steps_of(folder))
    assert newest(folder) == 0
    node = next(n for n in three_nodes.worker_nodes if train_workers(n.all_processes["raylet"][0].process.pid))
    drain = ["drain-node", f"--address={three_nodes.address}", f"--node-id={node.node_id}", "--reason-message=spot"]
    drain += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds=3600"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *drain], check=True)
    saved = command.wait_for(lambda: newest(folder), 60)
    later = steps_of(folder)[-1]
    command.wait_for(lambda: steps_of(folder)[-1] > later)  # training goes on
    assert newest(folder) == saved  # and it is saved once
    command.process.send_signal(signal.SIGTERM)
    command.finish(3)


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_the_same_command_goes_on(
    config: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = ("run", config, "--out", folder, "--resume")
    command, starting, _ = start(folder, *arguments)
    assert train_workers(command.pid)
    command.process.kill()
    command.finish(-signal.SIGKILL)
    at, again = newest(folder), time.monotonic()
    command = Command(*arguments)
    resumed_in_time(command, folder, at, starting, again)
    command.finish()
    assert_same_run(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_driver_saves_and_exits_with_3(
    number: signal.Signals, config: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = Command("run", config, "--out", folder)
    command.wait_for(lambda: newest(folder))
    command.process.send_signal(number)
    command.finish(3)
    assert newest(folder) < 30000
    Command("resume", folder).finish()
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_the_last_checkpoint(
    config: Path, whole: Path, tmp_path: Path
) -> None:
    """The run folder is a small file system of its own, and a stranger fills it."""
    folder = tmp_path / "run"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        command = Command("run", config, "--out", folder)
        command.wait_for(lambda: newest(folder))
        with open(folder / "stranger", "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        output = command.finish(1)
        assert "No space left on device" in output and "kept" in output and "Traceback" not in output
        (folder / "stranger").unlink()
        Command("resume", folder).finish()
        assert_same_run(folder, whole)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_workers_that_die_too_often_end_the_run_with_a_sentence(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = Command("run", config, "--out", folder, "runtime.max_failures=0")
    command.wait_for(lambda: newest(folder))
    command.wait_for(lambda: train_workers(command.pid))[0].kill()
    output = command.finish(1)
    assert "lifelong: the workers failed" in output and "Traceback" not in output


def test_workers_ask_for_orders_together_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers whose clocks differ: the first one's decides, for both."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    said: list[int] = []

    class First(Workers):
        def lead(self, number: int) -> int:
            said.append(number)
            return number

    class Second(Workers):
        def lead(self, number: int) -> int:
            return said.pop()

    reporter = SimpleNamespace(stop=False)
    first, second = (
        train.Orders(reporter, SimpleNamespace(workers=workers))  # type: ignore[arg-type]
        for workers in (First(0, 2), Second(1, 2))
    )
    messages = stopped = 0
    for chunk in range(400):
        clock[0] += 0.01
        reporter.stop = chunk >= 300
        order = first()
        messages += len(said)
        clock[0] += 0.003
        assert second() == order
        if order == Order.STOP:
            stopped = chunk
            break
    assert 300 <= stopped <= 300 + 2 * train.POLL / 0.013
    assert messages <= 8 + 300 * 0.013 / train.POLL


def test_a_mistake_that_is_found_while_ray_starts_is_the_answer(config: Path, tmp_path: Path) -> None:
    command = Command("run", config, "--out", tmp_path / "run", "rollout.copies=7")
    output = command.finish(2)
    assert "rollout.copies is 7" in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_start_that_is_stopped_leaves_no_process(config: Path, tmp_path: Path) -> None:
    command = Command("run", config, "--out", tmp_path / "run")
    command.wait_for(lambda: any("raylet" in p.command for p in below(command.pid)))
    command.process.send_signal(signal.SIGTERM)
    command.finish(-signal.SIGTERM)


# ---- an own cluster -------------------------------------------------------------------------------------------------


def test_settings_of_an_own_cluster_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = cluster.ray_module()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the token of another cluster")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    before, clusters = dict(os.environ), ray._private.ray_constants.ENABLE_RAY_CLUSTER
    with loopback.settings(ray):
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert len(token.read_text()) == 64 and "RAY_AUTH_TOKEN" not in os.environ
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1", "the user's word counts where it does no harm"
        assert ray._private.services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
    assert dict(os.environ) == before and not token.parent.exists()
    assert clusters == ray._private.ray_constants.ENABLE_RAY_CLUSTER


# ---- preflight -------------------------------------------------------------------------------------------------------


def test_a_cluster_that_is_too_small_is_refused_with_a_sentence(config: Path, tmp_path: Path) -> None:
    cpus = (os.cpu_count() or 1) + 1
    command = Command("run", config, "--out", tmp_path / "run", f"runtime.threads={cpus}")
    output = command.finish(1)
    assert f"2 worker(s) of {cpus} CPU each" in output and "runtime.threads" in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_dead_address_is_refused_at_once(config: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(ClusterError, match=f"cannot connect to the Ray cluster at {address}: .*refused"):
        cluster.connect(address).__enter__()
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("address", ["somewhere", "ray://head:10001", "head:"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="local, auto or host:port"):
        cluster.resolve_address(address)


def test_an_own_cluster_is_the_default_and_the_environment_comes_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.resolve_address("") == "local"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster.resolve_address("") == "head:6379"
    assert cluster.resolve_address("local") == "local"


def test_a_node_without_the_folder_or_with_other_versions_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "seen").touch()
    good = cluster._look(str(tmp_path / "seen"))
    cluster._check_answer("node-7", tmp_path, good)
    elsewhere = cluster._look(str(tmp_path / "not" / "there"))
    with pytest.raises(ClusterError, match=r"node-7 cannot use the run folder .*No such file"):
        cluster._check_answer("node-7", tmp_path, elsewhere)
    unseen = cluster._look(str(tmp_path / "unseen"))
    with pytest.raises(ClusterError, match="does not see the files of this machine"):
        cluster._check_answer("node-7", tmp_path, unseen)
    old = {**good, "versions": {**good["versions"], "torch": "1.0"}}
    with pytest.raises(ClusterError, match=r"node-7 has torch 1\.0"):
        cluster._check_answer("node-7", tmp_path, old)


# ---- jobs ------------------------------------------------------------------------------------------------------------


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def ray_start(*options: str, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[bytes]:
    """`ray start ... --block`, as an administrator would."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", "PATH": path, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End `ray start` and all that it started."""
    started = below(process.pid)
    process.terminate()
    process.wait()
    for left in started:
        if left.runs():
            left.kill()


@contextmanager
def head(*options: str, **environment: str) -> Iterator[tuple[str, str]]:
    """A head with two CPUs: (host:port, http://host:port of the dashboard)."""
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as place:  # sockets need a short path
        ports = (f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={place}", "--num-cpus=2")
        process = ray_start("--head", *ports, *options, **environment)
        try:
            until(lambda: listens(port) and ("--include-dashboard=false" in options or listens(dashboard)), LONG)
            yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        finally:
            end(process)


def listens(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_submitted_run_is_streamed_and_its_exit_code_returned(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    folder = tmp_path / "run"
    with head(**TOKEN) as (_, dashboard):
        submit = ("run", config, "--submit", dashboard, "--out", folder, "runtime.workers=1")
        output = Command(*submit, RAY_AUTH_MODE="disabled").finish(1)
        assert "lifelong: cannot use the Jobs API" in output and "token" in output and "Traceback" not in output
        output = Command(*submit, **TOKEN).finish()
        assert "average performance" in output and (folder / "summary.json").exists()
        output = Command(*submit, **TOKEN).finish(2)  # the job's own exit code
        assert "already holds a run" in output
        longer = ("runtime.workers=2", "stream.steps_per_task=200000")
        stopped = Command(*submit[:-2], tmp_path / "stopped", *longer, **TOKEN)
        stopped.wait_for(lambda: newest(tmp_path / "stopped"))
        stopped.process.send_signal(signal.SIGINT)
        assert "checkpoint" in stopped.finish(3)
    inline = tmp_path / "inline"
    Command("run", config, "--out", inline, "runtime.backend=inline", "runtime.workers=1").finish()
    assert (folder / "metrics.jsonl").read_bytes() == (inline / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_missing_token_is_a_sentence(config: Path, tmp_path: Path) -> None:
    with head("--include-dashboard=false", **TOKEN) as (address, _):
        arguments = ("run", config, "--out", tmp_path / "run", f"runtime.address={address}", "runtime.workers=1")
        output = Command(*arguments, RAY_AUTH_MODE="disabled").finish(1)
        assert "lifelong: cannot connect to the Ray cluster" in output and "Traceback" not in output
        Command(*arguments, **TOKEN).finish()


def nodes_of(address: str) -> int:
    """Nodes alive in the cluster, as seen by a process of its own."""
    code = f"import ray; ray.init({address!r}, logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, **TOKEN}, capture_output=True, check=False)
    return int(found.stdout or 0)


@pytest.mark.slow
def test_storage_that_a_node_does_not_have_is_refused(config: Path, tmp_path: Path) -> None:
    """The second node is a process that sees an empty file system where the others have the run folder's parent."""
    shared = tmp_path / "shared"
    shared.mkdir()
    blind = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh")
    if subprocess.run([*blind, "true"], check=False).returncode:
        pytest.skip("may not mount a file system here")
    with head("--include-dashboard=false", **TOKEN) as (address, _):
        node = ray_start(f"--address={address}", "--num-cpus=1", prefix=blind, **TOKEN)
        try:
            until(lambda: nodes_of(address) == 2, LONG)
            arguments = ("run", config, "--out", shared / "run", f"runtime.address={address}")
            output = Command(*arguments, **TOKEN).finish(1)
        finally:
            end(node)
    assert "cannot use the run folder" in output and "storage that every node has" in output, output
    assert "Traceback" not in output and not (shared / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--submit", "http://head:8265"], ["--submit needs --out"]),
        (["--submit", "http://head:8265", "--out", "runs/here"], ["'runs/here'", "full path"]),
        (["--submit", "ftp://head", "--out", "/runs/here"], ["ftp://head", "http://head:8265"]),
        (["--submit", "http://head:8265", "--out", "/runs/here", "--code", "nowhere"], ["'nowhere'", "no folder"]),
    ],
)
def test_a_submission_that_cannot_be_is_refused(
    options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "quickstart", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lifelong: ") and all(word in error for word in words), error


def test_a_submission_to_nobody_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    assert main(["run", "quickstart", "--out", "/runs/here", "--submit", address]) == 1
    assert "refused" in capsys.readouterr().err
