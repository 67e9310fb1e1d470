"""RealTime: an environment that does not wait for its agent."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import RecordConstructorArgs

from lifelong.envs.errors import EnvError


class RealTime(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Actions arrive late, and the environment goes on meanwhile with the last one that has arrived.

    The delay is fixed, drawn for every action, or measured:

    - *fixed* and *drawn*: what is executed at step t is the newest action that was chosen at or before step t - d, with
      its own d; one that arrives behind a newer one is dropped. With d = 1 this is the real-time decision process of
      Ramstedt & Pal 2019 (NeurIPS, "Real-Time Reinforcement Learning"), in which a step takes as long as thinking.
    - *measured*: for every `period` seconds that pass between an observation and the action the environment makes a
      step of its own with the last action (Travnik, Mathewson, Sutton & Pilarski 2018, "Reactive Reinforcement Learning
      in Asynchronous Environments"); rewards are summed.

    A policy needs `previous_action` and a memory to know what is under way. `info["executed_action"]` is the last
    action that was executed, `info["delay"]` how many steps late it was (measured: how many were missed).

    Args:
        env: the environment.
        delay: d, steps.
        longest: drawn uniformly from `delay` to `longest` for every action; None: it is fixed.
        period: seconds of a step; the delay is measured then, and `delay` does not count. None: it is not.
        idle: action until the first one has arrived; None: 0 of Discrete, the middle of a bounded Box, else zeros.
        clock: for `period`, seconds.

    Raises:
        EnvError: a delay below 0, `longest` below `delay`, a period that is not positive, an idle action that is none.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        delay: int = 1,
        longest: int | None = None,
        period: float | None = None,
        idle: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        options = {"delay": delay, "longest": longest, "period": period, "idle": idle, "clock": clock}
        RecordConstructorArgs.__init__(self, **options)
        gymnasium.Wrapper.__init__(self, env)
        if not isinstance(delay, int) or delay < 0:
            raise EnvError(f"wrapper realtime: delay is {delay!r}; it must be an int of at least 0 steps")
        if longest is not None and (not isinstance(longest, int) or longest < delay):
            raise EnvError(f"wrapper realtime: longest is {longest!r}; it must be an int of at least delay, {delay}")
        if period is not None and not period > 0:
            raise EnvError(f"wrapper realtime: period is {period!r}; it must be above 0 seconds")
        if period is not None and longest is not None:
            raise EnvError("wrapper realtime: a delay is drawn (longest) or measured (period); give one of them")
        self.delay, self.longest, self.period, self.clock = delay, longest, period, clock
        self.idle = _idle(env.action_space) if idle is None else idle
        if not env.action_space.contains(self.idle):
            raise EnvError(f"wrapper realtime: idle is {self.idle!r}, which is no action of {env.action_space}")
        self._generator = np.random.default_rng()
        self._begin()

    def _begin(self) -> None:
        self._t, self._chosen = 0, -1  # of the action that is executed: when it was chosen
        self._executed = self.idle
        self._under_way: list[tuple[int, int, Any]] = []  # arrives, chosen, action
        self._since = self.clock()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; nothing is under way."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        self._begin()
        return obs, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """The environment's next step; `action` is executed when it arrives."""
        if self.period is not None:
            return self._measured(action)
        delay = self.delay if self.longest is None else int(self._generator.integers(self.delay, self.longest + 1))
        self._under_way.append((self._t + delay, self._t, action))
        arrived = [one for one in self._under_way if one[0] <= self._t]
        self._under_way = [one for one in self._under_way if one[0] > self._t]
        for _, chosen, one in arrived:
            if chosen > self._chosen:
                self._chosen, self._executed = chosen, one
        obs, reward, terminated, truncated, info = self.env.step(self._executed)
        late = self._t - self._chosen
        self._t += 1
        return obs, reward, terminated, truncated, {**info, "executed_action": copy.copy(self._executed), "delay": late}

    def _measured(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        assert self.period is not None
        missed = int((self.clock() - self._since) / self.period)
        total, ended = 0.0, False
        result: Any = None
        for executed in [*[self._executed] * missed, action]:
            if ended:
                break
            result = self.env.step(executed)
            total += float(result[1])
            ended = bool(result[2] or result[3])
            self._executed = executed
        obs, _, terminated, truncated, info = result
        self._since = self.clock()
        return (
            obs,
            total,
            terminated,
            truncated,
            {**info, "executed_action": copy.copy(self._executed), "delay": missed},
        )


def _idle(space: gymnasium.Space[Any]) -> Any:
    """An action that does little."""
    if isinstance(space, Discrete):
        return int(space.start)
    if isinstance(space, Box):
        bounded = np.isfinite(space.low) & np.isfinite(space.high)
        middle = np.where(bounded, (np.where(bounded, space.low, 0) + np.where(bounded, space.high, 0)) / 2, 0)
        return middle.astype(space.dtype)
    zeros: Any = np.zeros(space.shape or (), space.dtype)
    return zeros
