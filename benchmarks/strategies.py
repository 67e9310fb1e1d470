"""What every strategy costs: the quickstart's steps per second and memory with it, relative to finetune.

    lifelong bench strategies [--json FILE]

One process, one thread. Each strategy, at the options that the quickstart has for it, stands alone and is measured in
its second task, when everything that it does at a boundary and after it is at work, and takes turns with finetune on
the same config: once with chunks made one by one, both of them, which says what the hooks cost, and once as they are
run, where finetune's chunks are planned, and those of strategies whose hooks are compiled (see docs/performance.md).
The median of the ratios of neighbouring turns is reported, in seconds of this process for a chunk. What happens at a
boundary is timed by itself, as the number of chunks of the first finetune that fit into it. Memory is that of the
strategy's tensors, in units of the policy's parameters.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.measure import finish, ratios
from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError
from lifelong.agent.registry import REGISTRY, check_name
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.memory import held_bytes
from lifelong.agent.runtime.trainer import Trainer

FIRST = 51_200  # steps of the first task, 50 chunks
CHUNKS = 8  # of a turn
TURNS = 12
#: what some strategies need to know beside their options
NEEDS: tuple[list[str], ...] = ([], ["stream.task_id=observed"], ["stream.task_id=observed", "policy.heads=per_task"])


def trainer_of(strategy: str, needs: list[str], folder: Path) -> Trainer:
    """The quickstart with a short first task, one thread."""
    short = [f"stream.tasks.0.steps={FIRST}", "runtime.device=cpu", "runtime.threads=1"]
    return build(configs.load("quickstart", [f"strategy={strategy}", *needs, *short]), folder)


def frames(trainer: Trainer) -> int:
    """Steps of a chunk."""
    return trainer.config.rollout.copies * trainer.config.rollout.steps


def seconds(trainer: Trainer, chunks: int) -> float:
    """Of this process, for a chunk, in the mean over so many, or a few more where several are planned at once."""
    begun, step = time.process_time(), trainer.step
    while trainer.step < step + chunks * frames(trainer):
        trainer.advance()
    return (time.process_time() - begun) * frames(trainer) / (trainer.step - step)


def measure(strategy: str, folder: Path) -> dict[str, Any] | None:
    """Speed, boundary and memory of one strategy; None if the quickstart has no place for it."""
    for needs in NEEDS:
        try:
            ours, stepwise = (trainer_of(strategy, needs, folder / f"{strategy}-{i}") for i in range(2))
        except ConfigError:
            continue
        break
    else:
        return None
    plain, planned = (trainer_of("finetune", needs, folder / f"finetune-{strategy}-{i}") for i in range(2))
    plain.planned.plan = stepwise.planned.plan = None
    before = FIRST // frames(ours) - 1
    for trainer in (ours, stepwise, plain, planned):
        seconds(trainer, before)
    border = 3 * seconds(stepwise, 3)
    for trainer in (ours, plain, planned):
        seconds(trainer, 3)
    turns = []
    for turn in range(TURNS + 1):  # the first one warms up
        found = [seconds(trainer, CHUNKS) for trainer in (stepwise, plain, ours, planned)]
        if turn:
            turns.append(found)
    mine, others, as_run, plans = (list(times) for times in zip(*turns, strict=True))
    parameters = held_bytes(dict(ours.rollout.policy.named_parameters()))
    return {
        "speed": median(ratios(others, mine)),
        "speed_beside_plan": median(ratios(plans, as_run)),
        "boundary_chunks": max(0.0, (border - 3 * median(mine)) / median(others)),
        "memory_parameters": held_bytes(ours.strategies[0].state_dict()) / parameters,
        "needs": needs,
    }


def main(json_file: Path | None, only: list[str]) -> dict[str, Any]:
    """Measure, print, and write the JSON."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    print(
        f"{'strategy':22} {'speed':>6} {'plan':>6} {'boundary':>9} {'memory':>8}"
        "   (of finetune's, chunk by chunk and as run; in its chunks; in parameters)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in only or REGISTRY["strategy"]:
            check_name("strategy", name)
            result = measure(name, Path(folder))
            if result is None:
                print(f"{name:22} has no place in the quickstart")
                continue
            found[name] = result
            print(
                f"{name:22} {result['speed']:6.2f} {result['speed_beside_plan']:6.2f}"
                f" {result['boundary_chunks']:9.0f} {result['memory_parameters']:8.1f}"
                f"   {' '.join(result['needs'])}",
                flush=True,
            )
    return finish("strategies", {"strategies": found}, json_file)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("strategy", nargs="*", help="only these")
    options = arguments.parse_args()
    main(options.json, options.strategy)
