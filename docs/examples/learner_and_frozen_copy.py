"""A learner beside a frozen copy of itself: at half-time the motor of the cart is mounted the other way round.
Writes the picture learner_and_frozen_copy.png, after some minutes."""

import sys
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt

import lifelong


class Life:
    """One agent in a CartPole of its own, from step to step."""

    def __init__(self, agent: lifelong.OnlineAgent | None = None, begin: int = 0) -> None:
        self.env = gymnasium.make("CartPole-v1")
        self.agent = agent or lifelong.OnlineAgent(self.env.observation_space, self.env.action_space, seed=0)
        self.obs, _ = self.env.reset(seed=begin)
        self.action = self.agent.act(self.obs)
        self.step, self.length = begin, 0
        self.episodes: list[tuple[int, int]] = []  # (step at its end, length)

    def live(self, steps: int) -> None:
        """Act, and learn unless the agent is frozen."""
        for _ in range(steps):
            self.obs, reward, terminated, truncated, _ = self.env.step(self.action)
            self.step, self.length = self.step + 1, self.length + 1
            self.action = self.agent.act(self.obs, 0.1 * float(reward), terminated, truncated)
            if terminated or truncated:
                self.episodes.append((self.step, self.length))
                self.obs, self.length = self.env.reset()[0], 0
                self.action = self.agent.act(self.obs)


def main(half: int = 30_000, folder: Path = Path()) -> list[Life]:
    """Live for `half` steps, make a frozen copy, turn the motors round, and let both live as long again."""
    learner = Life()
    learner.live(half)
    learner.agent.save(folder / "learner.pt")
    copy = lifelong.OnlineAgent.load(folder / "learner.pt")
    copy.freeze()
    copy.act(learner.obs, 0.0, truncated=True)  # it leaves the learner's episode for one of its own
    figure, axis = plt.subplots()
    lives = [learner, Life(copy, begin=half)]
    for life, label in zip(lives, ("learner", "frozen copy"), strict=True):
        life.env.unwrapped.force_mag *= -1
        life.live(half)
        axis.plot(*zip(*life.episodes, strict=True), ".", markersize=4, label=label)
    axis.axvline(half, color="grey")
    axis.set(xlabel="step", ylabel="length of the episode")
    axis.legend()
    figure.savefig(folder / "learner_and_frozen_copy.png", dpi=100)
    return lives


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
