"""Irregular: an environment that is seen and acted on at irregular times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.utils import RecordConstructorArgs

from lifelong.envs.errors import EnvError


class Irregular(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Between two observations pass k steps of the environment, k drawn anew every time; the action is held, rewards
    are summed, and the end of an episode is seen at once.

    How much time has passed since the last observation is an input: `unit` times the steps, appended to a vector, or
    the part `dt` of a Dict observation; 0 at the first observation of an episode. The gap that follows is not shown.

    Args:
        env: with a Box of one axis, or a Dict, as observations.
        gaps: the numbers k of steps.
        probabilities: of the gaps; None: all alike.
        unit: of the time that is shown, per step.
        show: whether it is.

    Raises:
        EnvError: gaps below 1, probabilities that are none, observations that time cannot be put into.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        gaps: Sequence[int] = (1, 2, 3, 4),
        probabilities: Sequence[float] | None = None,
        unit: float = 1.0,
        show: bool = True,
    ) -> None:
        options: dict[str, Any] = {"gaps": gaps, "probabilities": probabilities, "unit": unit, "show": show}
        RecordConstructorArgs.__init__(self, **options)
        gymnasium.Wrapper.__init__(self, env)
        if not gaps or any(not isinstance(gap, int) or gap < 1 for gap in gaps):
            raise EnvError(f"wrapper irregular: gaps is {list(gaps)}; it must have ints of at least 1 step")
        shares = np.full(len(gaps), 1 / len(gaps)) if probabilities is None else np.asarray(probabilities, np.float64)
        if shares.shape != (len(gaps),) or (shares < 0).any() or not np.isclose(shares.sum(), 1.0):
            raise EnvError(
                f"wrapper irregular: probabilities is {probabilities}; it must have one for each of {len(gaps)} gaps, "
                "with sum 1"
            )
        self.gaps, self.shares, self.unit, self.show = list(gaps), shares / shares.sum(), float(unit), show
        space, longest = env.observation_space, self.unit * max(gaps)
        if show and isinstance(space, Box) and len(space.shape) == 1 and space.dtype.kind == "f":
            low, high = np.append(space.low, 0.0), np.append(space.high, longest)
            self.observation_space = Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype.type)
        elif show and isinstance(space, Dict) and "dt" not in space.spaces:
            self.observation_space = Dict({**space.spaces, "dt": Box(0.0, longest, (1,), np.float32)})
        elif show:
            raise EnvError(
                f"wrapper irregular: time cannot be shown in observations of {space}; it needs a vector of floats or a "
                "Dict without dt, or set show to false"
            )
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        return self._seen(obs, 0), {**info, "gap": 0}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """As many steps with the action as are drawn, or until the episode ends."""
        gap = int(self._generator.choice(self.gaps, p=self.shares))
        total, made = 0.0, 0
        result: Any = None
        while made < gap and (result is None or not (result[2] or result[3])):
            result = self.env.step(action)
            total, made = total + float(result[1]), made + 1
        obs, _, terminated, truncated, info = result
        return self._seen(obs, made), total, terminated, truncated, {**info, "gap": made}

    def _seen(self, obs: Any, steps: int) -> Any:
        if not self.show:
            return obs
        passed = self.unit * steps
        if isinstance(obs, dict):
            return {**obs, "dt": np.array([passed], np.float32)}
        return np.append(obs, passed).astype(self.observation_space.dtype)
