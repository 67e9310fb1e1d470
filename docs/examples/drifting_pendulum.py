"""A pendulum on a cart whose gravity drifts to four times as much: an agent that goes on learning, beside a copy of
itself that was frozen before. Writes the picture drifting_pendulum.png, after a minute."""

import sys
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt

import lifelong

EARTH, HEAVY = 9.8, 40.0  # m/s^2


class Life:
    """One agent with a pendulum of its own, from step to step."""

    def __init__(self, agent: lifelong.OnlineAgent | None, step: int, seed: int) -> None:
        self.env = gymnasium.make("CartPole-v1", max_episode_steps=200)
        self.agent = agent or lifelong.OnlineAgent(self.env.observation_space, self.env.action_space, seed=0)
        self.step, self.begun, self.episodes = step, step, list[tuple[int, int]]()
        self.action = self.agent.act(self.env.reset(seed=seed)[0])

    def live(self, steps: int, gravity: float, drift: int = 0) -> None:
        """Act, and learn unless the agent is frozen; gravity gets to what it will be within `drift` steps."""
        world = self.env.unwrapped
        for _ in range(steps):
            world.gravity += (gravity - world.gravity) / max(1, drift)
            drift = max(0, drift - 1)
            obs, reward, terminated, truncated, _ = self.env.step(self.action)
            self.action = self.agent.act(obs, 0.1 * float(reward), terminated, truncated)
            self.step += 1
            if terminated or truncated:
                self.episodes.append((self.step, self.step - self.begun))
                self.begun, self.action = self.step, self.agent.act(self.env.reset()[0])


def main(half: int = 40_000, folder: Path = Path()) -> list[Life]:
    """Live for `half` steps, make a frozen copy, let gravity drift, and live as long again."""
    learner = Life(None, 0, seed=0)
    learner.live(half, EARTH)
    learner.agent.save(folder / "pendulum.pt")
    copy = lifelong.OnlineAgent.load(folder / "pendulum.pt")
    copy.freeze()
    copy.act(learner.env.observation_space.sample(), 0.0, truncated=True)  # it leaves the learner's episode
    figure, axis = plt.subplots()
    lives = [learner, Life(copy, half, seed=1)]
    for life, label in zip(lives, ("learner", "frozen copy"), strict=True):
        life.live(half, HEAVY, drift=half // 20)
        axis.plot(*zip(*life.episodes, strict=True), ".", markersize=4, label=label)
    axis.axvspan(half, half + half // 20, color="grey", alpha=0.4)
    axis.set(xlabel="step; gravity grows where it is grey", ylabel="length of the episode")
    axis.legend(loc="center left")
    figure.savefig(folder / "drifting_pendulum.png", dpi=100)
    return lives


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
