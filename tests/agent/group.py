"""Groups of workers in plain processes: torch.distributed with gloo and no Ray."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from lifelong.agent.parallel import TorchWorkers

Work = Callable[[TorchWorkers, Path], Any]


def _member(rank: int, count: int, folder: Path, works: Mapping[str, Work]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count)
    workers = TorchWorkers()
    results = {}
    for name, work in works.items():
        place = folder / name
        place.mkdir(exist_ok=True)
        results[name] = work(workers, place)
    (folder / f"results-{rank}.pickle").write_bytes(pickle.dumps(results))
    torch.distributed.destroy_process_group()


def in_group(count: int, folder: Path, works: Mapping[str, Work]) -> dict[str, list[Any]]:
    """What each `work(workers, folder / name)` returns on each of `count` workers; one slow start for all of them."""
    torch.multiprocessing.spawn(_member, (count, folder, works), count)
    results = [pickle.loads((folder / f"results-{rank}.pickle").read_bytes()) for rank in range(count)]
    return {name: [result[name] for result in results] for name in works}
