"""N-DMS, a curriculum: is the last digit that of N - 1 steps before? And what becomes of the units' time constants.

    n_dms.py --out FOLDER [--seed S] window=0 [longest=8] [steps=400_000] [size=64]

`window` heads are trained at a time, the newest ones; 1 is the single-head curriculum, 0 keeps all (multi-head).

- *learned*, *kept*: N's known (98 % right) at some evaluation, and at the end.
- *time_constant*, *longest*: mean over the units at the end, and the largest; they begin between 1 and 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from benchmarks.measure import recipe_row
from benchmarks.published.training import trained
from lifelong.agent.runtime.trainer import Trainer

KNOWN = 0.96


def config_of(window: int, longest: int, steps: int, size: int) -> dict[str, Any]:
    """A run of the curriculum from N = 2 to `longest`."""

    def task(n: int) -> dict[str, Any]:
        least = {0: 2, 1: 0}.get(window, max(2, n - window + 1))
        env = {"kind": "Parity", "question": "match", "longest": longest, "n": n, "least": least}
        return {"name": f"N={n}", "env": env}

    return {
        "name": "n_dms",
        "stream": {
            "steps_per_task": steps,
            "schedule": {"kind": "curriculum", "criterion": KNOWN},
            "tasks": [task(n) for n in range(2, longest + 1)],
        },
        "policy": {"encoder": "identity", "cell": {"kind": "leaky", "size": size}},
        "gradient": "bptt",
        "objective": "supervised",
        "optimizer": {"kind": "adam", "lr": 2e-3},
        "max_grad_norm": 2.0,
        "rollout": {"copies": 128, "steps": 32},
        "evaluation": {"every": 50_000, "episodes": 256},
        "checkpoint": {"every": 10**9},
        "log_every": 10**9,
        "runtime": {"device": "cpu"},
    }


def measure(seed: int, window: int, longest: int = 8, steps: int = 400_000, size: int = 64) -> dict[str, Any]:
    """Numbers of a row, and the mean time constant over environment steps."""
    at: list[int] = []
    mean: list[float] = []
    most: list[float] = []

    @torch.no_grad()
    def look(trainer: Trainer) -> None:
        constants = 1 + trainer.rollout.policy.cell.get_parameter("time").exp()
        at.append(trainer.step)
        mean.append(round(float(constants.mean()), 4))
        most.append(float(constants.max()))

    known = trained(config_of(window, longest, steps, size), seed, look).performance() >= KNOWN
    return {
        "learned": known.any(0).sum(),
        "kept": known[-1].sum(),
        "time_constant": mean[-1],
        "longest": most[-1],
        "curve": [at, mean],
    }


if __name__ == "__main__":
    recipe_row(measure, __doc__)
