"""Environment speed: every native environment, compiled and eager, beside those of EnvPool, Gymnasium, POPGym and
MinAtar.

    lifelong bench envs [--json FILE] [--only NAME ...]

All step random actions that were drawn before the clock starts, in this process, with one thread and in turn; the
median of the ratios of neighbouring turns is reported. The clock is the process's own, so that what others take of a
shared machine does not count. `steps` makes T = 32 steps in one call, as a run does, `step` one at a time; `eager` is
the step in torch that both are made from. Of Gymnasium `vector` is its CartPole written in numpy for all copies at
once, `sync` a loop over single environments (64 copies only). A step of ours ends in a reset where an episode ended;
EnvPool's and Gymnasium's resets take a step of their own, which is counted as an environment step all the same. The
packages POPGym and MinAtar have no vector form that is faster than a loop over their environments, so that is measured:
one call of `step` and of `reset` where an episode ended, without collecting what they return (`package`). What is not
installed (`pip install lifelong[envpool] popgym mazelib MinAtar`) is left out.
"""

from __future__ import annotations

import argparse
import importlib
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
from gymnasium.vector.utils import batch_space

from benchmarks.measure import finish, medians, ratios, take_turns
from lifelong.envs.registry import ADAPTERS, ENVIRONMENTS
from lifelong.envs.tasks import environment_class
from lifelong.kernels.loop import loop

COPIES = (64, 1024)
STEPS = 32
THREADS = 1
SECONDS_PER_TURN = 0.03
SECONDS_PER_SIZE = 4.0
ACTIONS = 32  # different sets of random actions
WARM_UP = 40  # steps after which the copies' episodes are out of step with each other
#: names elsewhere
ELSEWHERE = {
    "CartPole": "CartPole-v1",
    "Acrobot": "Acrobot-v1",
    "MountainCar": "MountainCar-v0",
    "Pendulum": "Pendulum-v1",
}
#: whose numpy form Gymnasium has
VECTOR = ("CartPole",)
#: candidate -> what its ratio is called
PEERS = {"envpool": "envpool", "vector": "gymnasium_vector", "sync": "gymnasium_sync", "package": "package"}
#: modules of MinAtar
MINATAR = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
Candidate = tuple[Callable[[Any], Any], list[Any], int]  # what is called, what it gets in turn, steps of a call


def ours(name: str, copies: int, actions: list[np.ndarray]) -> dict[str, Candidate]:
    """Our environment one step at a time, T at a time, and in torch; each its own copies, after a reset."""
    envs = {way: environment_class(name)(copies, seed=0) for way in ("step", "steps", "eager")}
    for env in envs.values():
        env.reset()
    each = [torch.from_numpy(action) for action in actions]
    rows = [torch.stack([each[(k + t) % ACTIONS] for t in range(STEPS)]) for k in range(4)]
    one_by_one: dict[str, Candidate] = {
        "step": (envs["step"].step, each, 1),
        "eager": (envs["eager"].eager_step, each, 1),
    }
    if not envs["steps"].COMPILES:
        return one_by_one
    many = envs["steps"]

    def steps(action_TB: torch.Tensor) -> None:
        made = many.compiled_steps(action_TB)
        assert made is not None, f"{name} does not compile"
        made.begin()
        loop(STEPS, made.calls, torch.float32)
        made.finish()

    return {**one_by_one, "steps": (steps, rows, STEPS)}


def others(name: str, copies: int, actions: list[np.ndarray]) -> dict[str, Candidate]:
    """The environment of that name in EnvPool, Gymnasium, POPGym and MinAtar, where they have it."""
    found: dict[str, Candidate] = package(name, copies, actions)
    if name not in ELSEWHERE:
        return found
    if importlib.util.find_spec("envpool"):
        import envpool as pools

        narrow = [action.astype(np.int32) if action.dtype == np.int64 else action for action in actions]
        env = pools.make(ELSEWHERE[name], env_type="gymnasium", num_envs=copies, num_threads=THREADS, seed=0)
        env.reset()
        found["envpool"] = (env.step, narrow, 1)
    modes = {
        **({"sync": "sync"} if copies == COPIES[0] else {}),
        **({"vector": "vector_entry_point"} if name in VECTOR else {}),
    }
    for way, mode in modes.items():
        vector = gymnasium.make_vec(ELSEWHERE[name], num_envs=copies, vectorization_mode=mode)
        vector.reset(seed=0)
        found[way] = (vector.step, actions, 1)
    return found


def package(name: str, copies: int, actions: list[np.ndarray]) -> dict[str, Candidate]:
    """POPGym's or MinAtar's environment of that name (easy), in a loop over single ones."""
    if name in MINATAR and importlib.util.find_spec("minatar"):
        module = importlib.import_module(f"minatar.environments.{MINATAR[name]}")
        games = [module.Env() for _ in range(copies)]

        def play(action: np.ndarray) -> None:
            for game, each in zip(games, action, strict=True):
                if game.act(each)[1]:
                    game.reset()
                game.state()

        return {"package": (play, actions, 1)}
    maze = name.startswith("Labyrinth") and not importlib.util.find_spec("mazelib")
    if maze or name in ELSEWHERE or not importlib.util.find_spec("popgym"):
        return {}
    import popgym

    kind = getattr(popgym.envs, f"{name}Easy", None)
    if kind is None:
        return {}
    envs = [kind() for _ in range(copies)]
    for env in envs:
        env.reset()
    side = {"Battleship": 8, "MineSweeper": 4}.get(name)
    given = [np.stack(np.divmod(action, side), 1) if side else action for action in actions]

    def step(action: np.ndarray) -> None:
        for env, each in zip(envs, action, strict=True):
            _, _, terminated, truncated, _ = env.step(each)
            if terminated or truncated:
                env.reset()

    return {"package": (step, given, 1)}


class Turn:
    """Calling it makes so many calls of a candidate that they take about SECONDS_PER_TURN."""

    def __init__(self, candidate: Candidate) -> None:
        self.call, self.given, self.each = candidate
        self.calls = max(1, WARM_UP // self.each)
        self()
        begun = time.process_time()
        self()
        self.calls = max(1, round(self.calls * SECONDS_PER_TURN / max(1e-4, time.process_time() - begun)))

    def __call__(self) -> None:
        for k in range(self.calls):
            self.call(self.given[k % len(self.given)])

    @property
    def steps(self) -> int:
        """Steps of a turn."""
        return self.calls * self.each


def measure(name: str, copies: int) -> dict[str, Any]:
    """Environment steps per second of every candidate, and how many times faster T of ours at a time are."""
    space = batch_space(environment_class(name)(1).single_action_space, copies)
    space.seed(0)
    actions = [np.asarray(space.sample()) for _ in range(ACTIONS)]
    turns = {
        way: Turn(candidate) for way, candidate in (ours(name, copies, actions) | others(name, copies, actions)).items()
    }
    times = take_turns(turns, seconds=SECONDS_PER_SIZE, clock=time.process_time)
    a_step = {way: [t / turns[way].steps for t in values] for way, values in times.items()}
    best = "steps" if "steps" in a_step else "step"
    return {
        "steps_per_second": {way: copies / seconds for way, seconds in medians(a_step).items()},
        "over": {way: median(ratios(a_step[way], a_step[best])) for way in turns if way != best},
        "step_over": {
            way: median(ratios(a_step[way], a_step["step"])) for way in turns if way not in ("step", "steps")
        },
        "turns": len(a_step[best]),
    }


def main(json_file: Path | None, only: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and write the JSON."""
    torch.set_num_threads(THREADS)
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # EnvPool's spaces are float64
    detail: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, float]] = {}
    for name in [name for name in only or ENVIRONMENTS if name not in ADAPTERS]:
        for copies in COPIES:
            size = f"{name} B={copies} threads={THREADS}"
            each = detail[size] = measure(name, copies)
            found.setdefault("steps_over_eager", {})[size] = each["over"]["eager"]
            found.setdefault("step_over_eager", {})[size] = each["step_over"]["eager"]
            for way, called in PEERS.items():
                if way in each["over"]:
                    found.setdefault(f"steps_over_{called}", {})[size] = each["over"][way]
                    found.setdefault(f"step_over_{called}", {})[size] = each["step_over"][way]
            print(size)
            for way, rate in each["steps_per_second"].items():
                more = f"   {each['over'][way]:8.2f}x" if way in each["over"] else ""
                print(f"  {way:<20} {rate:>14,.0f} steps/s{more}", flush=True)
    if "steps_over_envpool" not in found:
        print("EnvPool is not installed; `pip install lifelong[envpool]` to measure steps_over_envpool")
    return finish("envs", {"ratios": found, "detail": detail}, json_file)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--only", nargs="+", choices=[name for name in ENVIRONMENTS if name not in ADAPTERS])
    given = arguments.parse_args()
    main(given.json, given.only)
