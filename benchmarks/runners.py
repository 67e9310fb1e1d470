"""Environment runners: MiniGrid through 2 runners on 2 cores, beside one process, and where the time goes.

    lifelong bench runners [--json FILE]

The learner and each runner have one thread; EnvPool alone may use as many threads as there are runners and is taken at
its fastest. All candidates take turns, and ratios are medians over neighbouring turns:

    runners_over_inline     environment steps per second through runners, over those of the same training in one process
    runners_over_floor      the same over 1 / (EnvPool alone with random actions + the learner alone), per step

What the floor leaves out is acting (the policy, the adapter around EnvPool) and transport; a second core pays for both.
A turn through runners ends when the next blocks are ready, so that it pays for all that it asked for. Needs
`pip install lifelong[envpool,ray]`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from benchmarks.measure import finish, medians, ratios, take_turns
from lifelong.agent import config as configs
from lifelong.agent.distributed.runners import pack, unpack
from lifelong.agent.runtime.build import build, build_runner
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.runtime.trainer import Trainer

RUNNERS = 2
#: (strategy, copies): without a strategy the learner does least, so the runners have to be fastest
SIZES = (("finetune", 32), ("finetune", 64), ("finetune", 128), ("finetune", 256), ("clear", 64))
STEPS = 64
TASK = "MiniGrid-MemoryS7-v0"
SECONDS_PER_SIZE = 30.0
CHUNKS = 6  # of a turn
NOWHERE = Path("unused")  # nothing is written


def config_of(strategy: str, copies: int, *overrides: str) -> configs.Config:
    """minigrid_memory with an objective that runners can feed."""
    common = [
        f"rollout.copies={copies}",
        f"rollout.steps={STEPS}",
        "objective={kind: actor_critic, gamma: 0.99, lam: 0.95}",
        f"strategy={strategy}",
        "runtime.device=cpu",
        "stream.steps_per_task=1_000_000_000",
    ]
    return configs.load("minigrid_memory", [*common, *overrides])


def envpool_alone(copies: int, threads: int) -> Callable[[], Any]:
    """CHUNKS chunks of random actions in EnvPool."""
    import envpool

    pool = envpool.make(TASK, env_type="gymnasium", num_envs=copies, num_threads=threads, seed=0)
    pool.reset()
    actions = np.random.default_rng(0).integers(0, 7, (STEPS, copies)).astype(np.int32)

    def turn() -> None:
        for _ in range(CHUNKS):
            for action in actions:
                pool.step(action)

    return turn


def learn(trainer: Trainer, experience: Experience) -> None:
    """What the learner does with a chunk."""
    trainer.learner.update(trainer.context(), experience)
    for strategy in trainer.strategies:
        strategy.after_chunk(trainer.context(), experience)


def training(trainer: Trainer) -> Callable[[], Any]:
    """CHUNKS chunks of experience, each learned from; with runners until their next blocks are ready."""

    def turn() -> int:
        frames = 0
        while frames < CHUNKS * STEPS * trainer.copies:
            trainer.follow_stream()
            experience = trainer.rollout.collect(STEPS)
            learn(trainer, experience)
            frames += experience.chunk.copies * STEPS
        blocks = [slot.block for slot in getattr(trainer.rollout, "slots", [])]
        if blocks:
            trainer.rollout.ray.wait(blocks, num_returns=len(blocks))  # type: ignore[union-attr]
        return frames

    return turn


def measure(strategy: str, copies: int) -> dict[str, Any]:
    """Microseconds an environment step of every part, and the ratios."""
    one_thread = [f"stream.tasks.{task}.env.num_threads=1" for task in (0, 1)]
    through = ["runtime.backend=ray", f"runtime.env_runners={RUNNERS}", "runtime.cpus_per_runner=0.5", *one_thread]
    inline = build(config_of(strategy, copies), NOWHERE)
    ray = build(config_of(strategy, copies, *through), NOWHERE)
    own = build_runner(config_of(strategy, copies, *one_thread), copies // RUNNERS, 0)
    experience = inline.rollout.collect(STEPS)
    inline.follow_stream()
    part = pack(own.collect(STEPS))

    def only_learn() -> None:
        for _ in range(CHUNKS):
            learn(inline, experience)

    def act() -> None:  # one runner's share
        for _ in range(CHUNKS):
            own.collect(STEPS)

    def join() -> None:
        for _ in range(CHUNKS):
            unpack([part] * RUNNERS, torch.device("cpu"))

    with ray.rollout.running():
        candidates = {
            **{f"envpool_{n}_threads": envpool_alone(copies, n) for n in range(1, RUNNERS + 1)},
            "learning": only_learn,
            "runner": act,
            "joining": join,
            "inline": training(inline),
            "runners": training(ray),
        }
        times = take_turns(candidates, seconds=SECONDS_PER_SIZE)
        timing = ray.rollout.timing()
        bytes_a_frame = timing["runners/object_store_bytes"] / (copies * STEPS)
        put = put_and_get(ray.rollout.ray, part)  # type: ignore[union-attr]
    frames = CHUNKS * STEPS * copies
    fastest = [min(pair) for pair in zip(times["envpool_1_threads"], times["envpool_2_threads"], strict=True)]
    floor = [env + learning for env, learning in zip(fastest, times["learning"], strict=True)]
    a_frame = {name: 1e6 * seconds / frames for name, seconds in medians(times).items()}
    a_frame["runner"] *= RUNNERS  # a turn of `act` had the copies of one runner
    environment = 1e6 * median(fastest) / frames
    return {
        "microseconds_a_step": {
            **a_frame,
            "environment": environment,
            "acting": a_frame["runner"] - environment,
            "transport": a_frame["joining"] + 1e6 * put * RUNNERS / (STEPS * copies),
        },
        "steps_per_second": {name: 1e6 / a_frame[name] for name in ("inline", "runners")},
        "runners_over_inline": median(ratios(times["inline"], times["runners"])),
        "runners_over_floor": median(ratios(floor, times["runners"])),
        "bytes_a_step": bytes_a_frame,
        "lag": timing["runners/lag"],
        "turns": len(times["runners"]),
    }


def put_and_get(ray: Any, part: dict[str, np.ndarray]) -> float:
    """Seconds to put a block into the object store and to get it."""
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        ray.get(ray.put(part))
        times.append(time.perf_counter() - begun)
    return median(times)


def main(json_file: Path | None) -> dict[str, Any]:
    """Measure, print the table, and write the JSON."""
    from lifelong.agent.distributed.cluster import connect

    torch.set_num_threads(1)
    with connect("local"):
        detail = {f"{name} B={copies} T={STEPS} runners={RUNNERS}": measure(name, copies) for name, copies in SIZES}
    found: dict[str, dict[str, float]] = {"runners_over_inline": {}, "runners_over_floor": {}}
    for size, each in detail.items():
        print(size)
        for name in ("environment", "acting", "learning", "transport", "inline", "runners"):
            print(f"  {name:<12} {each['microseconds_a_step'][name]:8.1f} µs a step")
        for name, values in found.items():
            values[size] = each[name]
            print(f"  {name:<20} {values[size]:6.2f}")
    return finish("runners", {"ratios": found, "detail": detail}, json_file)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", type=Path)
    main(arguments.parse_args().json)
