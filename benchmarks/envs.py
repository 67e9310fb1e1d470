"""Environment speed: our CartPole beside EnvPool's and Gymnasium's, at 64, 1024 and 4096 copies.

    lifelong bench envs [--json FILE]

All step random actions that were drawn before the clock starts, in this process and in turn; the median of the ratios
of neighbouring turns is reported. Ours and EnvPool's may use THREADS threads; EnvPool is measured with one thread too
and compared by the faster of the two. Gymnasium's vector environments have one thread: `vector` is its CartPole written
in numpy for all copies at once, `sync` a loop over single environments. A step of ours ends in a reset where an episode
ended; EnvPool's and Gymnasium's resets take a step of their own, which is counted as an environment step all the same.
EnvPool is needed only here and by its adapter: `pip install lifelong[envpool]`; without it the rest is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import gymnasium
import numpy as np
import torch

from benchmarks.measure import finish, medians, ratios, take_turns
from lifelong.envs.control.cartpole import CartPole

COPIES = (64, 1024, 4096)
THREADS = 2
SECONDS_PER_TURN = 0.1
SECONDS_PER_SIZE = 8.0
ACTIONS = 32  # different sets of random actions
WARM_UP = 50  # steps after which the copies' episodes are out of step with each other


def ours(copies: int) -> tuple[Callable[[Any], Any], Callable[[np.ndarray], Any]]:
    """`(step, how it wants its actions)` of our CartPole, after a reset."""
    env = CartPole(copies, seed=0)
    env.reset()
    return env.step, torch.from_numpy


def envpool(copies: int, threads: int) -> tuple[Callable[[Any], Any], Callable[[np.ndarray], Any]]:
    """The same of EnvPool's CartPole-v1."""
    import envpool as pools

    env = pools.make("CartPole-v1", env_type="gymnasium", num_envs=copies, num_threads=threads, seed=0)
    env.reset()
    return env.step, lambda action: action.astype(np.int32)


def gymnasiums(copies: int, mode: str) -> tuple[Callable[[Any], Any], Callable[[np.ndarray], Any]]:
    """The same of Gymnasium's CartPole-v1."""
    env = gymnasium.make_vec("CartPole-v1", num_envs=copies, vectorization_mode=mode)
    env.reset(seed=0)
    return env.step, lambda action: action


class Stepper:
    """Calling it makes so many steps of an environment that they take about SECONDS_PER_TURN."""

    def __init__(self, copies: int, step: Callable[[Any], Any], convert: Callable[[np.ndarray], Any]) -> None:
        generator = np.random.default_rng(0)
        self.step = step
        self.actions = [convert(generator.integers(0, 2, copies)) for _ in range(ACTIONS)]
        self.steps = WARM_UP
        self()
        begun = time.perf_counter()
        self()
        self.steps = max(4, round(WARM_UP * SECONDS_PER_TURN / (time.perf_counter() - begun)))

    def __call__(self) -> None:
        for k in range(self.steps):
            self.step(self.actions[k % ACTIONS])


def measure(copies: int) -> dict[str, Any]:
    """Environment steps per second of every candidate, and how many times faster ours is."""
    made = {"ours": ours(copies)}
    if importlib.util.find_spec("envpool"):
        made |= {f"envpool_{n}_threads": envpool(copies, n) for n in sorted({1, THREADS})}
    made |= {"vector": gymnasiums(copies, "vector_entry_point"), "sync": gymnasiums(copies, "sync")}
    steppers = {name: Stepper(copies, *parts) for name, parts in made.items()}
    times = take_turns(steppers, seconds=SECONDS_PER_SIZE)
    a_step = {name: [t / steppers[name].steps for t in values] for name, values in times.items()}
    return {
        "steps_per_second": {name: copies / seconds for name, seconds in medians(a_step).items()},
        "over": {name: median(ratios(a_step[name], a_step["ours"])) for name in made if name != "ours"},
        "turns": len(a_step["ours"]),
    }


def main(json_file: Path | None) -> dict[str, Any]:
    """Measure, print the table, and write the JSON."""
    torch.set_num_threads(THREADS)
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # EnvPool's spaces are float64
    detail = {f"B={copies} threads={THREADS}": measure(copies) for copies in COPIES}
    found: dict[str, dict[str, float]] = {}
    for size, each in detail.items():
        over = each["over"]
        pools = [ratio for name, ratio in over.items() if name.startswith("envpool")]
        if pools:
            found.setdefault("cartpole_over_envpool", {})[size] = min(pools)
        found.setdefault("cartpole_over_gymnasium_vector", {})[size] = over["vector"]
        found.setdefault("cartpole_over_gymnasium_sync", {})[size] = over["sync"]
        print(size)
        for name, rate in each["steps_per_second"].items():
            print(f"  {name:<20} {rate:>14,.0f} steps/s" + (f"   ours is {over[name]:7.2f}x" if name in over else ""))
    if "cartpole_over_envpool" not in found:
        print("EnvPool is not installed; `pip install lifelong[envpool]` to measure cartpole_over_envpool")
    for name, values in found.items():
        for size, value in values.items():
            print(f"{name:32} {size:20} {value:8.2f}")
    return finish("envs", {"ratios": found, "detail": detail}, json_file)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", type=Path)
    main(arguments.parse_args().json)
