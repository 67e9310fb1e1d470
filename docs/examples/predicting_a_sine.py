"""A stream of predictions: the discounted sum of what a sine will be, whose frequency jumps. A learner beside a copy of
itself that is frozen at the first jump. Writes the picture predicting_a_sine.png."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from gymnasium.spaces import Box

import lifelong

GAMMA = 0.9
CONFIG = {
    "policy": {"encoder": "identity", "cell": {"kind": "rtu", "size": 32}},
    "gradient": "rtrl",
    "objective": {"kind": "td", "gamma": GAMMA, "lam": 0.95},
    "optimizer": {"kind": "intentional", "lr": 0.1},
    **{"max_grad_norm": 0, "rollout": {"steps": 1}},
}


def signal(steps: int) -> np.ndarray:
    """A sine with a little noise, of another period in every third of the steps."""
    periods = np.repeat([12.0, 31.0, 7.0], -(-steps // 3))[:steps]
    return np.sin(2 * np.pi * np.cumsum(1 / periods)) + 0.05 * np.random.default_rng(0).normal(size=steps)


def to_come(x: np.ndarray) -> np.ndarray:
    """What is to be predicted at every step: sum_i gamma^i x[t + 1 + i]."""
    sums = np.zeros(len(x))
    for t in reversed(range(len(x) - 1)):
        sums[t] = x[t + 1] + GAMMA * sums[t + 1]
    return sums


def main(steps: int = 18_000, folder: Path = Path()) -> dict[str, np.ndarray]:
    """Returns the squared errors of learner and copy, each a mean over a hundredth of the steps."""
    x, agent = signal(steps), lifelong.OnlineAgent(Box(-2, 2, (1,)), Box(-np.inf, np.inf, (1,)), CONFIG, seed=0)
    agents, said = {"learner": agent}, {name: np.full(steps, np.nan) for name in ("learner", "frozen copy")}
    for t in range(steps):
        if t == steps // 3:
            agent.save(folder / "agent.pt")
            agents["frozen copy"] = lifelong.OnlineAgent.load(folder / "agent.pt")
            agents["frozen copy"].freeze()
        for name, one in agents.items():
            said[name][t] = one.act(x[t : t + 1], x[t] if t else None)[0]
    errors = {n: ((y - to_come(x)) ** 2)[: steps // 100 * 100].reshape(100, -1).mean(1) for n, y in said.items()}
    figure, axis = plt.subplots()
    for name, error in errors.items():
        axis.semilogy(np.arange(100) * (steps // 100), error, label=name)
    axis.set(xlabel="step", ylabel="mean squared error")
    axis.legend()
    figure.savefig(folder / "predicting_a_sine.png", dpi=100)
    return errors


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
