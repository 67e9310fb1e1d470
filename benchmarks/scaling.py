"""Weak scaling of data-parallel workers beside the cost model of docs/cluster.md.

    lifelong bench scaling --json FILE          two workers with a thread each, gloo, quickstart without evaluations

Both workers live through the whole measurement. In one turn worker 0 trains its copies alone, in the next both train
theirs apart, without a word to each other, and in the third together; neighbouring turns see the same machine.

    weak scaling efficiency = seconds alone / seconds together
    communication efficiency = seconds apart / seconds together     what is left when cores are shared with others too

The model knows nothing of the turns together: it adds to the seconds apart what the messages of a chunk cost, from a
latency and a bandwidth that are measured with messages of other sizes.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.multiprocessing

from agent import config as configs
from agent.parallel import ALONE, TorchWorkers, Workers
from agent.runtime.build import build
from agent.runtime.trainer import Trainer
from benchmarks.measure import finish, ratios

COPIES = 64  # of a worker
CHUNKS = 10  # in a turn
#: floats of the messages that latency and bandwidth are fitted to
SIZES = (1, 1 << 20)


class Counting(TorchWorkers):
    """Workers that count what they send, for the model."""

    def __init__(self) -> None:
        super().__init__()
        self.messages, self.bytes, self.leads = 0, 0, 0

    def _reduce(self, tensors: Any, operation: Any, scale: float = 1.0) -> None:
        super()._reduce(tensors, operation, scale)
        self.messages += 1
        self.bytes += sum(x.numel() * x.element_size() for x in tensors)

    def lead(self, number: int) -> int:
        self.leads += 1
        return super().lead(number)


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


def chunk(trainer: Trainer) -> None:
    """What `Trainer.train` does in a chunk with neither log nor evaluation."""
    trainer.follow_stream()
    experience = trainer.rollout.collect(trainer.steps)
    metrics, _ = trainer.learner.update(trainer.context(), experience)
    for strategy in trainer.strategies:
        strategy.after_chunk(trainer.context(), experience)
    trainer.step += trainer.copies * trainer.steps
    trainer.record.add(metrics, experience)
    trainer.workers.lead(0)


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
    return {"latency": latency, "per_byte": (long - latency) / (4 * SIZES[1]), "lead": lead}


def member(rank: int, folder: Path, limit: float) -> None:
    """One of the two workers."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    workers = Counting()
    alone, together = trainer_of(ALONE, 0), trainer_of(workers, 1)
    for _ in range(CHUNKS):
        chunk(alone)
        chunk(together)
    costs = message_costs(workers)
    times: dict[str, list[float]] = {"alone": [], "apart": [], "together": []}
    workers.messages = workers.bytes = workers.leads = 0
    stop = time.perf_counter() + limit
    while workers.lead(time.perf_counter() < stop):
        if rank == 0:
            times["alone"].append(seconds(lambda: chunk(alone), CHUNKS))
        workers.gather(None)
        times["apart"].append(max(workers.gather(seconds(lambda: chunk(alone), CHUNKS))))
        times["together"].append(seconds(lambda: chunk(together), CHUNKS))
    chunks = CHUNKS * len(times["together"])
    sent = {"messages": workers.messages / chunks, "bytes": workers.bytes / chunks, "leads": 1.0}
    if rank == 0:
        (folder / "result.pickle").write_bytes(pickle.dumps((times, costs, sent)))
    torch.distributed.destroy_process_group()


def main() -> None:
    """Measure, predict and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--seconds", type=float, default=40.0)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(member, (Path(folder), options.seconds), 2)
        times, costs, sent = pickle.loads((Path(folder) / "result.pickle").read_bytes())
    seconds_of = {name: median(values) for name, values in times.items()}
    apart = seconds_of["apart"]
    messages = sent["messages"] * costs["latency"] + sent["bytes"] * costs["per_byte"] + sent["leads"] * costs["lead"]
    scaling, talking = (ratios(times[name], times["together"]) for name in ("alone", "apart"))
    measured, predicted = median(talking), apart / (apart + messages)
    print(
        f"{sent['messages']:.0f} all-reduces and {sent['bytes'] / 1e3:.0f} kB a chunk; gloo: "
        f"{costs['latency'] * 1e6:.0f} us and {costs['per_byte'] * 1e12:.0f} us/MB, a broadcast "
        f"{costs['lead'] * 1e6:.0f} us"
    )
    print(f"a chunk of {COPIES} copies: " + ", ".join(f"{x * 1e3:.1f} ms {name}" for name, x in seconds_of.items()))
    print(f"weak scaling efficiency {median(scaling):.2f} ({scaling[0]:.2f} to {scaling[-1]:.2f})")
    print(
        f"communication efficiency {measured:.2f} ({talking[0]:.2f} to {talking[-1]:.2f}), the model: {predicted:.2f}"
    )
    found = {
        "ratios": {
            "weak_scaling_efficiency": median(scaling),
            "communication_efficiency": measured,
            "predicted_over_measured": predicted / measured,
        },
        "detail": {
            "config": "quickstart",
            "copies_per_worker": COPIES,
            "threads_per_worker": 1,
            "workers": 2,
            "chunk_seconds": seconds_of,
            "turns": len(times["together"]),
            "predicted_efficiency": predicted,
            "message_costs_seconds": costs,
            "sent_a_chunk": sent,
        },
    }
    finish("scaling", found, options.json)


if __name__ == "__main__":
    main()
