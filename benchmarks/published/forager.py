"""Forager: reward a step of an agent in an endless world, beside searches that know all or nothing.

    forager.py --out FOLDER [--seed S] memory=true base=-5 [start=BASE] [steps=2_000_000]
    forager.py --out FOLDER [--seed S] search=oracle|random base=-5

`base` is what every thing gives, beside what belongs to its kind and strip: -5 by the rules. `start` is what it gives
at first, and moves to `base` in three quarters of the steps. Measured with `base`, over 32 fresh worlds of 1,000 steps:
*rate*, reward a step at the end; *best*, of all evaluations.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measure import recipe_row
from benchmarks.published.training import trained
from lifelong.envs.forager.forager import Forager
from lifelong.envs.forager.search import search as searched

COPIES, STEPS = 32, 1000


def config_of(memory: bool, base: float, start: float, steps: int) -> dict[str, Any]:
    """A run with or without a memory, in a world that moves from `start` to `base`."""

    def task(name: str, gives: float, share: float) -> dict[str, Any]:
        env = {"kind": "Forager", "period": 100_000, "base": gives}
        return {"name": name, "env": env, "steps": int(share * steps), "reward_scale": 0.1}

    return {
        "name": "forager",
        "stream": {"schedule": "drift", "tasks": [task("at first", start, 0.75), task("at the end", base, 0.25)]},
        "policy": {
            "encoder": "identity",
            "cell": {"kind": "elstm", "size": 64, "forget_bias": [0, 4]},
            "previous_action": True,
            "previous_reward": True,
            "reset_memory_on": "episode" if memory else "step",
        },
        "gradient": "rtrl" if memory else "bptt",
        "objective": {"kind": "actor_critic", "gamma": 0.95, "lam": 0.9, "entropy_weight": 0.02},
        "optimizer": {"kind": "adam", "lr": 1e-3},
        "max_grad_norm": 1.0,
        "rollout": {"copies": 64, "steps": 16},
        "evaluation": {"every": steps // 8, "episodes": COPIES, "max_steps": STEPS},
        "checkpoint": {"every": 10**9},
        "log_every": 10**9,
        "runtime": {"device": "cpu"},
    }


def bound(seed: int, base: float, policy: Any) -> float:
    """Reward a step of a search."""
    env = Forager(COPIES, seed=seed, base=base)
    env.reset()
    return sum(float(env.step(searched(env, env.state, policy))[1].mean()) for _ in range(STEPS)) / STEPS


def measure(
    seed: int,
    memory: bool = True,
    base: float = -5.0,
    start: float | None = None,
    steps: int = 2_000_000,
    search: str = "",
) -> dict[str, Any]:
    """Numbers of a row, and reward a step over environment steps."""
    if search:
        rate = bound(seed, base, search)
        return {"rate": rate, "best": rate, "curve": [[0, steps], [rate, rate]]}
    found = trained(config_of(memory, base, base if start is None else start, steps), seed, lambda trainer: None)
    rates = found.tensor()[:, 1].mean(-1) / STEPS
    return {"rate": rates[-1], "best": rates.max(), "curve": [list(found.steps), rates.round(4).tolist()]}


if __name__ == "__main__":
    recipe_row(measure, __doc__)
