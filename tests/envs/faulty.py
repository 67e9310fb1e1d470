"""A Gymnasium environment that does what it must not, and keeps a diary of what is done with it."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics


def fail(how: str) -> Any:
    """What `how` says: raise, or return what is not allowed."""
    if how == "hangs":
        time.sleep(60)
    if how == "sys.exit":
        sys.exit(3)
    if how == "OSError":
        raise OSError(28, "No space left on the licence server")
    if how == "unpicklable":
        raise Awkward("two", "words")
    if how in ("KeyError", "TypeError", "ValueError"):
        raise {"KeyError": KeyError, "TypeError": TypeError, "ValueError": ValueError}[how]("three\nlines")
    return {
        "shape": np.zeros(3, np.float32),
        "dtype": np.asarray(["a", "b"]),
        "class": {"not": "an array"},
        "none": None,
    }[how]


class Awkward(Exception):
    """Cannot be made from one message."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


class Faulty(gymnasium.Env[Any, Any]):
    """Episodes of `length` steps that count; faults at the given calls of `step` or `reset`, all copies of a process
    together.

    Args:
        fault: see `fail`.
        at: numbers of the calls of `step`, the first is 1.
        resets: numbers of the calls of `reset`.
        makes: numbers of the instances that cannot be made.
        reward: the fault is in the reward, not in the observation.
        diary: file with a line for everything that is done: what, process, instance.
    """

    steps_done = 0
    resets_done = 0
    instances = 0

    def __init__(
        self,
        fault: str = "ValueError",
        at: tuple[int, ...] = (),
        resets: tuple[int, ...] = (),
        reward: bool = False,
        length: int = 5,
        diary: str = "",
        nested: bool = False,
        makes: tuple[int, ...] = (),
    ) -> None:
        box = Box(-99, 99, (2,), np.float32)
        self.observation_space = Dict({"a": box, "b": Discrete(3)}) if nested else box
        self.action_space = Discrete(2)
        self.fault, self.at, self.resets, self.reward, self.length = fault, at, resets, reward, length
        self.diary, self.nested = diary, nested
        self.server = io.BytesIO()  # of which nobody knows the state
        Faulty.instances += 1
        self.instance = Faulty.instances
        if self.instance in makes:
            fail(fault)
        self.note("made")

    def note(self, what: str) -> None:
        if self.diary:
            with open(self.diary, "a") as file:
                file.write(f"{what} {os.getpid()} {self.instance}\n")

    def observe(self) -> Any:
        array = np.asarray([self.count, self.instance], np.float32)
        return {"a": array, "b": 1} if self.nested else array

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        Faulty.resets_done += 1
        self.count = 0
        if Faulty.resets_done in self.resets:
            return fail(self.fault), {}
        return self.observe(), {"seed": -1 if seed is None else seed}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        Faulty.steps_done += 1
        self.count += 1
        obs, reward = self.observe(), 1.0
        if Faulty.steps_done in self.at:
            wrong = fail(self.fault)
            if self.reward:
                reward = wrong
            else:
                obs = wrong
        return obs, reward, self.count >= self.length, False, {}

    def close(self) -> None:
        self.note("closed")


def wrapped(**options: Any) -> gymnasium.Env[Any, Any]:
    """The same under wrappers."""
    return RecordEpisodeStatistics(FrameStackObservation(Faulty(**options), 2))


gymnasium.register("faulty-v0", entry_point=Faulty, disable_env_checker=True)
gymnasium.register("faulty-wrapped-v0", entry_point=wrapped, max_episode_steps=4, disable_env_checker=True)
gymnasium.register("faulty-checked-v0", entry_point=Faulty)


def reset_counts() -> None:
    Faulty.steps_done = Faulty.resets_done = Faulty.instances = 0


def diary(path: Path) -> dict[str, list[str]]:
    """what -> "process instance" of every entry, in order."""
    entries: dict[str, list[str]] = {"made": [], "closed": []}
    for line in path.read_text().splitlines():
        what, _, who = line.partition(" ")
        entries[what].append(who)
    return entries
