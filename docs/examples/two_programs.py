"""Two programs share one agent through a file: each loads it, lives for a while, and saves it for the other one.
Writes the picture two_programs.png, after a minute."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt

import lifelong

POLES = {"short": 0.5, "long": 1.0}  # each program has a CartPole of its own


def live(name: str, file: Path, steps: int) -> list[int]:
    """The lengths of the episodes of one shift of a program."""
    env = gymnasium.make("CartPole-v1", max_episode_steps=200)
    world = env.unwrapped
    world.length, world.polemass_length = POLES[name], world.masspole * POLES[name]
    new = lambda: lifelong.OnlineAgent(env.observation_space, env.action_space, seed=0)  # noqa: E731
    agent = lifelong.OnlineAgent.load(file) if file.exists() else new()
    lengths, length = [], 0
    obs, _ = env.reset()
    action = agent.act(obs)
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(action)
        action, length = agent.act(obs, 0.1 * float(reward), terminated, truncated), length + 1
        if terminated or truncated:
            lengths.append(length)
            length, action = 0, agent.act(env.reset()[0])
    agent.act(obs, 0.0, truncated=True)  # the other program begins an episode of its own
    agent.save(file)  # replaced whole or not at all: whoever loads it sees one agent
    return lengths


def main(steps: int = 4_000, folder: Path = Path(), shifts: int = 10) -> list[tuple[str, list[int]]]:
    """Let the two take turns, each time in a process of their own."""
    done = []
    for shift in range(shifts):
        name = list(POLES)[shift % 2]
        words = [sys.executable, __file__, name, str(folder / "shared.pt"), str(steps)]
        done.append((name, json.loads(subprocess.check_output(words))))
    figure, axis = plt.subplots()
    for shift, (name, lengths) in enumerate(done):
        places = [shift + (n + 1) / (len(lengths) + 1) for n in range(len(lengths))]
        axis.plot(places, lengths, ".", color={"short": "tab:blue", "long": "tab:orange"}[name], markersize=4)
        axis.text(shift + 0.5, 207, name, ha="center", fontsize=8)
    axis.set(xlabel=f"shift, {steps:,} steps each", ylabel="length of the episode", ylim=(0, 220))
    figure.savefig(folder / "two_programs.png", dpi=100)
    return done


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(live(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main(*map(int, sys.argv[1:]))
