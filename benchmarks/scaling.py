"""Weak scaling of data-parallel workers beside the cost model of docs/cluster.md, and what a start on Ray takes.

    lifelong bench scaling --json FILE          two workers with a thread each, gloo, quickstart without evaluations

Both workers live through the whole measurement. In one turn worker 0 trains its copies alone, in the next both train
theirs apart, without a word to each other, and in the third together; neighbouring turns see the same machine.

    weak scaling efficiency = seconds alone / seconds together
    communication efficiency = seconds apart / seconds together     what is left when cores are shared with others too

The model knows nothing of the turns together. It takes the chunks apart two by two, adds up the longer ones, because
whoever is first waits for the gradient of the other, and adds what the messages of a chunk cost, from a latency and a
bandwidth that are measured with messages of other sizes.

The start is that of `lifelong run quickstart runtime.backend=ray runtime.workers=2`, from the command to the moment
when the workers have opened the run, before its first evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.multiprocessing

from benchmarks.measure import finish, ratios
from lifelong.agent import config as configs
from lifelong.agent.distributed.train import Orders
from lifelong.agent.parallel import ALONE, TorchWorkers, Workers
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.trainer import Trainer

COPIES = 64  # of a worker
CHUNKS = 10  # in a turn
#: floats of the messages that latency and bandwidth are fitted to
SIZES = (1, 1 << 15)
STARTS = 3
ROOT = Path(__file__).parent.parent


class Counting(TorchWorkers):
    """Workers that count what they send, for the model."""

    def __init__(self) -> None:
        super().__init__()
        self.messages = self.bytes = self.hidden = self.leads = 0

    def _reduce(self, tensors: Any, operation: Any, scale: float = 1.0) -> None:
        super()._reduce(tensors, operation, scale)
        self.messages += 1
        self.bytes += sum(x.nbytes for x in tensors)

    def sum_ahead(self, tensor: Any) -> Any:
        self.hidden += 1
        return super().sum_ahead(tensor)

    def lead(self, number: int) -> int:
        self.leads += 1
        return super().lead(number)


class OrdersHere(Orders):
    """Orders of a group that Ray did not start."""

    def _node_leaves(self) -> bool:
        return False


def trainer_of(workers: Workers, seed: int) -> Trainer:
    """quickstart with `COPIES` copies a worker."""
    config = configs.load(
        "quickstart",
        [
            f"seed={seed}",
            f"rollout.copies={COPIES * workers.count}",
            "stream.steps_per_task=100_000_000",
            "runtime.device=cpu",
            "runtime.backend=ray",
            f"runtime.workers={workers.count}",
        ],
    )
    return build(config, Path("unwritten"), workers)


def orders_of(trainer: Trainer) -> Orders:
    """Orders of a driver that never wants to stop."""
    return OrdersHere(SimpleNamespace(stop=False), trainer)  # type: ignore[arg-type]


def chunk(trainer: Trainer, orders: Orders) -> float:
    """What `Trainer.train` does in a chunk with neither log nor evaluation; the seconds it took."""
    start = time.perf_counter()
    trainer.advance()
    orders()
    return time.perf_counter() - start


def seconds(work: Callable[[], Any], times: int) -> float:
    """Mean seconds of `work`."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def message_costs(workers: TorchWorkers) -> dict[str, float]:
    """Seconds of an all-reduce without content, seconds a byte, and seconds of a broadcast of one number."""
    small, large = (torch.zeros(size) for size in SIZES)
    for tensor in (small, large):
        workers.sum_([tensor])
    latency = median(seconds(lambda: workers.sum_([small]), 20) for _ in range(10))
    long = median(seconds(lambda: workers.sum_([large]), 2) for _ in range(10))
    lead = median(seconds(lambda: workers.lead(0), 20) for _ in range(10))
    return {"latency": latency, "per_byte": max(0.0, long - latency) / (4 * SIZES[1]), "lead": lead}


def member(rank: int, folder: Path, limit: float) -> None:
    """One of the two workers."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    workers = Counting()
    alone, together = trainer_of(ALONE, 0), trainer_of(workers, 1)
    alone_orders, orders = orders_of(alone), orders_of(together)
    for _ in range(CHUNKS):
        chunk(alone, alone_orders)
        chunk(together, orders)
    costs = message_costs(workers)
    times: dict[str, list[float]] = {"alone": [], "apart": [], "slower": [], "together": []}
    sent = {"messages": 0, "bytes": 0, "hidden": 0, "leads": 0}
    stop = time.perf_counter() + limit
    while workers.lead(time.perf_counter() < stop):
        if rank == 0:
            times["alone"].append(mean(chunk(alone, alone_orders) for _ in range(CHUNKS)))
        workers.gather(None)
        apart = workers.gather([chunk(alone, alone_orders) for _ in range(CHUNKS)])
        times["apart"].append(max(map(mean, apart)))
        times["slower"].append(mean(map(max, *apart)))
        before = {name: getattr(workers, name) for name in sent}
        times["together"].append(seconds(lambda: chunk(together, orders), CHUNKS))
        sent = {name: sent[name] + getattr(workers, name) - before[name] for name in sent}
    chunks = CHUNKS * len(times["together"])
    if rank == 0:
        result = times, costs, {name: number / chunks for name, number in sent.items()}
        (folder / "result.pickle").write_bytes(pickle.dumps(result))
    workers.gather(None)
    torch.distributed.destroy_process_group()


def start_seconds(folder: Path) -> dict[str, float]:
    """Seconds from the command to the moment when the workers have opened the run, and of the parts."""
    shape = ["runtime.backend=ray", "runtime.workers=2", "stream.steps_per_task=100_000_000", "log_every=1"]
    began = time.time()
    run = subprocess.Popen(
        [sys.executable, "-m", "lifelong.agent.cli", "run", "quickstart", "--quiet", "--out", str(folder), *shape],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,  # it says that it was stopped
    )
    timing, opened = folder / "timing.jsonl", 0.0
    while not (timing.exists() and timing.read_text().endswith("}\n")):
        if run.poll() is not None:
            raise SystemExit("the run ended before it trained")
        if not opened and timing.exists():
            opened = time.time()
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    run.wait()
    parts = json.loads(timing.read_text().splitlines()[0])
    names = ("driver", "workers", "open")
    return {"total": opened - began, **{name: parts[f"cluster/start_{name}_seconds"] for name in names}}


def main() -> None:
    """Measure, predict and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--seconds", type=float, default=40.0)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(member, (Path(folder), options.seconds), 2)
        times, costs, sent = pickle.loads((Path(folder) / "result.pickle").read_bytes())
        starts = [start_seconds(Path(folder) / f"run-{i}") for i in range(STARTS)]
    seconds_of = {name: median(values) for name, values in times.items()}
    messages = sent["messages"] * costs["latency"] + sent["bytes"] * costs["per_byte"] + sent["leads"] * costs["lead"]
    predictions = [slower + messages for slower in times["slower"]]
    scaling, talking = (ratios(times[name], times["together"]) for name in ("alone", "apart"))
    model = ratios(predictions, times["together"])
    print(
        f"{sent['messages']:.1f} messages that are waited for, {sent['hidden']:.1f} that are not and "
        f"{sent['bytes'] / 1e3:.0f} kB a chunk; gloo: {costs['latency'] * 1e6:.0f} us and "
        f"{costs['per_byte'] * 1e12:.0f} us/MB, a broadcast {costs['lead'] * 1e6:.0f} us, {sent['leads']:.2f} a chunk"
    )
    print(f"a chunk of {COPIES} copies: " + ", ".join(f"{x * 1e3:.1f} ms {name}" for name, x in seconds_of.items()))
    print(f"weak scaling efficiency {median(scaling):.2f} ({scaling[0]:.2f} to {scaling[-1]:.2f})")
    print(f"communication efficiency {median(talking):.2f} ({talking[0]:.2f} to {talking[-1]:.2f})")
    print(f"the model: {median(predictions) * 1e3:.1f} ms together, {median(model):.2f} of what was measured")
    start = {name: median(each[name] for each in starts) for name in starts[0]}
    totals = ", ".join(f"{each['total']:.1f}" for each in starts)
    print(
        f"a start on Ray: {start['total']:.1f} s ({totals}): driver "
        f"{start['driver']:.1f}, workers {start['workers']:.1f}, opening the run {start['open']:.1f}"
    )
    found = {
        "ratios": {
            "weak_scaling_efficiency": median(scaling),
            "communication_efficiency": median(talking),
            "predicted_over_measured_seconds": median(model),
        },
        "detail": {
            "config": "quickstart",
            "copies_per_worker": COPIES,
            "threads_per_worker": 1,
            "workers": 2,
            "chunk_seconds": seconds_of,
            "turns": len(times["together"]),
            "predicted_seconds": median(predictions),
            "message_costs_seconds": costs,
            "sent_a_chunk": sent,
            "start_seconds": start,
        },
    }
    finish("scaling", found, options.json)


if __name__ == "__main__":
    main()
