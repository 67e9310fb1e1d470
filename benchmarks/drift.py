"""An agent in a world that drifts, beside its frozen copy: CartPole, one environment, in a plain Gymnasium loop.

    lifelong bench drift [--json FILE] [--seeds 5] [--picture FILE]

An agent of the bundled config `online` lives in CartPole-v1 with episodes of at most 200 steps. After `BEFORE` steps
the world drifts, three times, each within `DRIFT` steps, and stays so for the rest of `PHASE`: the pole becomes four
times as long; gravity four times as strong; the pole an eighth as long. A copy that is frozen where the first drift
begins lives through the same. Nobody tells either of them.

The return is the mean length of the episodes that ended in the last `WINDOW` steps. A drift is survived where it comes
back to 90 % of what it was in the `WINDOW` steps before the drift, within `PHASE` steps of its beginning and after the
drift is over.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import gymnasium
import numpy as np

import lifelong
from benchmarks.measure import finish

BEFORE, PHASE, DRIFT, WINDOW = 40_000, 20_000, 2_000, 4_000
#: gravity in m/s^2 and half the length of the pole in m: at first, and after each drift
WORLDS = [(9.8, 0.5), (9.8, 2.0), (40.0, 0.5), (9.8, 0.0625)]
SHARE = 0.9
Episodes = list[tuple[int, int]]  # step at the end, length


class Life:
    """One agent in a CartPole of its own."""

    def __init__(self, agent: lifelong.OnlineAgent, step: int, seed: int) -> None:
        self.env, self.agent, self.step = gymnasium.make("CartPole-v1", max_episode_steps=200), agent, step
        self.episodes: Episodes = []
        self.length = 0
        obs, _ = self.env.reset(seed=seed)
        self.action = agent.act(obs)

    def world(self, gravity: float, length: float) -> None:
        """The world is another one."""
        world: Any = self.env.unwrapped
        world.gravity, world.length, world.polemass_length = gravity, length, world.masspole * length

    def live(self, steps: int) -> None:
        """Act, and learn unless the agent is frozen."""
        for _ in range(steps):
            obs, reward, terminated, truncated, _ = self.env.step(self.action)
            self.step, self.length = self.step + 1, self.length + 1
            self.action = self.agent.act(obs, 0.1 * float(reward), terminated, truncated)
            if terminated or truncated:
                self.episodes.append((self.step, self.length))
                self.length = 0
                self.action = self.agent.act(self.env.reset()[0])

    def drift(self, old: tuple[float, float], new: tuple[float, float]) -> None:
        """A drift, step by step, and the rest of its phase."""
        for t in range(DRIFT):
            share = (t + 1) / DRIFT
            self.world(*(a + share * (b - a) for a, b in zip(old, new, strict=True)))
            self.live(1)
        self.live(PHASE - DRIFT)


def of(seed: int, folder: Path) -> dict[str, Any]:
    """The episodes of the learner and of its frozen copy."""
    env = gymnasium.make("CartPole-v1")
    learner = Life(lifelong.OnlineAgent(env.observation_space, env.action_space, seed=seed), 0, seed)
    learner.world(*WORLDS[0])
    learner.live(BEFORE)
    learner.agent.save(folder / "agent.pt")
    frozen = lifelong.OnlineAgent.load(folder / "agent.pt")
    frozen.freeze()
    frozen.act(np.zeros(4), 0.0, truncated=True)  # it leaves the learner's episode for one of its own
    still = Life(frozen, BEFORE, seed + 1000)
    for life in (learner, still):
        for old, new in pairwise(WORLDS):
            life.drift(old, new)
    return {"learner": learner.episodes, "frozen": still.episodes}


def return_at(episodes: Episodes, step: int) -> float:
    """Mean length of the episodes that ended in the `WINDOW` steps before `step`."""
    return mean([length for end, length in episodes if step - WINDOW < end <= step] or [0.0])


def judged(seed: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every drift: the return before; steps until it was back to `SHARE` of it (None: it was not) and the return at
    the end of the phase; of the frozen copy the best share of its return before the first drift that it had after the
    drift was over."""
    found = []
    first = return_at(seed["learner"], BEFORE)
    for k in range(len(WORLDS) - 1):
        begin = BEFORE + k * PHASE
        before, steps = return_at(seed["learner"], begin), range(DRIFT + WINDOW, PHASE + 1, 100)
        back = next((s for s in steps if return_at(seed["learner"], begin + s) >= SHARE * before), None)
        best = max(return_at(seed["frozen"], begin + s) for s in steps)
        end = return_at(seed["learner"], begin + PHASE)
        found.append({"before": before, "back_after": back, "end": end, "frozen_best_share": best / first})
    return found


def picture(seeds: list[dict[str, Any]], path: Path) -> None:
    """The return of every seed, learner and frozen copy, over the steps."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4))
    for who, color in (("learner", "tab:blue"), ("frozen", "tab:orange")):
        for index, seed in enumerate(seeds):
            last = BEFORE + (len(WORLDS) - 1) * PHASE
            steps = range(WINDOW if who == "learner" else BEFORE + WINDOW, last + 1, 500)
            label = {"learner": "learner", "frozen": "its copy, frozen at 40,000"}[who] if not index else None
            axis.plot(steps, [return_at(seed[who], s) for s in steps], color=color, linewidth=1, alpha=0.8, label=label)
    for k, said in enumerate(["pole × 4", "gravity × 4,\npole as at first", "pole × 1/8,\ngravity as at first"]):
        axis.axvspan(BEFORE + k * PHASE, BEFORE + k * PHASE + DRIFT, color="grey", alpha=0.4, linewidth=0)
        axis.text(BEFORE + k * PHASE + DRIFT + 300, 205, said, fontsize=8, va="bottom")
    axis.set(xlabel="step", ylabel=f"mean length of the episodes\nof the last {WINDOW:,} steps", ylim=(0, 235))
    axis.legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Live through it with every seed, and say what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args(arguments)
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            seeds.append(of(seed, Path(folder)))
            for k, row in enumerate(judged(seeds[-1])):
                print(f"seed {seed}, drift {k + 1}: {row}", flush=True)
    if options.picture:
        picture(seeds, options.picture)
    judgements = [judged(seed) for seed in seeds]
    rows = [row for judgement in judgements for row in judgement]
    found = {
        "protocol": {"worlds": WORLDS, "before": BEFORE, "phase": PHASE, "drift": DRIFT, "window": WINDOW},
        "drifts": judgements,
        "survived": sum(row["back_after"] is not None for row in rows),
        "survived_by_frozen": sum(row["frozen_best_share"] >= SHARE for row in rows),
        "of": len(rows),
        "episodes": copy.deepcopy(seeds),
    }
    print(f"learner {found['survived']} of {found['of']}, frozen copy {found['survived_by_frozen']} of {found['of']}")
    return finish("drift", found, options.json)


if __name__ == "__main__":
    main()
