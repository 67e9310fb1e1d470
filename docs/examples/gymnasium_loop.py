"""A plain loop over an environment of Gymnasium with an agent that learns in every call: no trainer, no config file.
Writes the picture gymnasium_loop.png, after a minute."""

import sys
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt

import lifelong


def main(steps: int = 40_000, folder: Path = Path()) -> list[tuple[int, int]]:
    """Live for so many steps; (step at its end, length) of every episode."""
    env = gymnasium.make("CartPole-v1")
    agent = lifelong.OnlineAgent(env.observation_space, env.action_space, seed=0)
    agent.log_to(folder / "log")  # tensorboard --logdir log
    episodes, length = [], 0
    obs, info = env.reset(seed=0)
    action = agent.act(obs, info=info)
    for step in range(1, steps + 1):
        obs, reward, terminated, truncated, info = env.step(action)
        action = agent.act(obs, 0.1 * float(reward), terminated, truncated, info)
        length += 1
        if terminated or truncated:
            episodes.append((step, length))
            length = 0
            obs, info = env.reset()
            action = agent.act(obs, info=info)
    agent.save(folder / "agent.pt")

    policy = lifelong.load(folder / "agent.pt")  # the same agent, which only acts
    (obs, _), memory, total, ended = env.reset(seed=1), None, 0.0, False
    while not ended:
        action, memory = policy(obs, memory)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + float(reward), terminated or truncated
    print(f"an episode of the policy alone: {total:.0f}")

    figure, axis = plt.subplots()
    axis.plot(*zip(*episodes, strict=True), ".", markersize=4)
    axis.set(xlabel="step", ylabel="length of the episode")
    figure.savefig(folder / "gymnasium_loop.png", dpi=100)
    return episodes


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
