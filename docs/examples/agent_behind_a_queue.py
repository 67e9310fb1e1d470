"""One agent in a thread of its own, behind a queue: three programs step their environments at their own speed, and ask
it for actions. Writes the picture agent_behind_a_queue.png, after some minutes."""

import queue
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib.pyplot as plt
import numpy as np

import lifelong

PROGRAMS = 3
Queue = queue.Queue[Any]  # of (whose, arguments of `act`, where the answer goes), or None: that was all


def serve(agent: lifelong.OnlineAgent, requests: Queue) -> None:
    """Answer until there is no more."""
    while (request := requests.get()) is not None:
        number, arguments, answer = request
        answer.put(int(agent.act(*(np.asarray(each)[None] for each in arguments), ids=[number])[0]))


def program(number: int, steps: int, requests: Queue, episodes: list[tuple[int, int]]) -> None:
    """Step an environment, knowing nothing of the agent but the queue."""
    env, answer, begun = gymnasium.make("CartPole-v1", max_episode_steps=200), Queue(), 0
    requests.put((number, (env.reset(seed=number)[0],), answer))
    for step in range(1, steps + 1):
        obs, reward, terminated, truncated, _ = env.step(answer.get())
        requests.put((number, (obs, 0.1 * float(reward), terminated, truncated), answer))
        if terminated or truncated:
            episodes.append((step, step - begun))
            begun, _ = step, answer.get()  # what it would do after the end does not count
            requests.put((number, (env.reset()[0], 0.0, False, False), answer))


def main(steps: int = 8_000, folder: Path = Path()) -> list[Any]:
    """Let the programs run for so many steps each."""
    env, requests, episodes = gymnasium.make("CartPole-v1"), Queue(), [[] for _ in range(PROGRAMS)]
    agent = lifelong.OnlineAgent(env.observation_space, env.action_space, copies=PROGRAMS, learn_every=16, seed=0)
    threading.Thread(target=serve, args=(agent, requests)).start()
    programs = [threading.Thread(target=program, args=(n, steps, requests, episodes[n])) for n in range(PROGRAMS)]
    for thread in programs:
        thread.start()
    figure, axis = plt.subplots()
    for thread, ended in zip(programs, episodes, strict=True):
        thread.join()
        axis.plot(*zip(*ended, strict=True), ".", markersize=4)
    requests.put(None)
    axis.set(xlabel="step of the program", ylabel="length of the episode")
    figure.savefig(folder / "agent_behind_a_queue.png", dpi=100)
    return episodes


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
