"""What a call of `lifelong.OnlineAgent.act` costs, in processor time, beside a call that only acts.

    lifelong bench online [--json FILE] [--calls N] [--parts latency,frozen,overhead]

- *latency*: chunks of T steps with the config `online`; `learn` is now, spread or thread. Calls are told apart by their
  place in the chunk, and of every place the median over the chunks is taken: that of the call that takes longest, and
  that of the middle one, each over the median call of an agent that is frozen and step by step. Of a thread only what
  the calling thread does is counted.
- *frozen*: the same of an agent that is frozen, in turns with one that is made to go step by step.
- *overhead*: what is done around the arithmetic, by function: shares of the calls' time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from gymnasium.spaces import Box, Discrete

import lifelong
from benchmarks.measure import finish

SPACES = Box(-10.0, 10.0, (4,), np.float32), Discrete(2)
STEPS = (8, 32)
#: a strategy with which the update is not one compiled call
PLAIN = "strategy={kind: clear, capacity: 256, start: 64}"


def agent(T: int, learn: Any = "now", *overrides: str) -> lifelong.OnlineAgent:
    """An agent of the bundled config."""
    return lifelong.OnlineAgent(*SPACES, seed=0, learn=learn, learn_every=T, overrides=overrides)


def calls(one: lifelong.OnlineAgent, count: int, clock: Callable[[], float], *, first: bool = True) -> list[float]:
    """Seconds of every call, behind the very first one of an agent; no episode ends."""
    obs = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    if first:
        one.act(obs[0])
    found = []
    for t in range(count):
        begin = clock()
        one.act(obs[t % 256], 0.1)
        found.append(clock() - begin)
    return found


def frozen(T: int, *overrides: str, plan: bool) -> lifelong.OnlineAgent:
    """An agent that only acts, with its plan or step by step."""
    one = agent(T, "now", *overrides)
    if not plan:
        one._lane = None
    one.freeze()
    return one


def by_place(seconds: list[float], T: int) -> list[float]:
    """The median of every place in the chunk, without the first chunks."""
    return [median(seconds[4 * T + place :: T]) for place in range(T)]


def latency(count: int) -> dict[str, Any]:
    """T -> config -> learn -> longest and median call over that of a frozen agent."""
    found: dict[str, Any] = {}
    for T in STEPS:
        for name, overrides in (("online", ()), ("with clear", (PLAIN,))):
            still = frozen(T, *overrides, plan=False)
            base = median(calls(still, count, time.process_time))
            row = found.setdefault(str(T), {}).setdefault(name, {})
            for learn in ("now", "spread", "thread"):
                clock = time.thread_time if learn == "thread" else time.process_time
                one = agent(T, learn, *overrides)
                places = by_place(calls(one, count, clock), T)
                row[learn] = {"longest": max(places) / base, "median": median(places) / base}
                print(f"T = {T}, {name}, {learn}: longest {max(places) / base:.1f}, median {median(places) / base:.2f}")
    return found


def frozen_calls(count: int, turns: int = 8) -> dict[str, Any]:
    """T -> longest and median call of a frozen agent with its plan over the median call step by step."""
    found: dict[str, Any] = {}
    for T in STEPS:
        agents = {plan: frozen(T, plan=plan) for plan in (True, False)}
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(turns):
            for plan, one in agents.items():
                seconds[plan] += calls(one, count // turns // T * T, time.process_time, first=not turn)
        base, places = median(seconds[False]), by_place(seconds[True], T)
        found[str(T)] = {"longest": max(places) / base, "median": median(places) / base}
        print(f"T = {T}, frozen: longest {found[str(T)]['longest']:.2f}, median {found[str(T)]['median']:.2f}")
    return found


def overhead(count: int) -> dict[str, float]:
    """Function -> share of the time of the calls, of those with most."""
    one = agent(8, "now", PLAIN)
    calls(one, 64, time.process_time)
    profile = cProfile.Profile()
    profile.enable()
    obs = np.zeros(4, np.float32)
    for _ in range(count):
        one.act(obs, 0.1)
    profile.disable()
    stats: Any = pstats.Stats(profile)
    total = stats.total_tt
    rows = {f"{Path(file).name}:{name}": own for (file, _, name), (_, _, own, _, _) in stats.stats.items()}
    return {name: own / total for name, own in sorted(rows.items(), key=lambda item: -item[1])[:25]}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, and say it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--calls", type=int, default=2048)
    parser.add_argument("--parts", default="latency,frozen,overhead")
    options = parser.parse_args(arguments)
    parts = {"latency": latency, "frozen": frozen_calls, "overhead": overhead}
    found = {name: parts[name](options.calls) for name in options.parts.split(",")}
    for name, share in found.get("overhead", {}).items():
        print(f"{share:6.1%}  {name}")
    return finish("online", found, options.json)


if __name__ == "__main__":
    main()
