"""Series: what is the next value of a noisy series that repeats a pattern?

The kind of data that Lin et al. 2024 (NeurIPS, arXiv 2409.18479), "CycleNet: Enhancing Time Series Forecasting through
Modeling Periodic Patterns", start from: a cycle, and a residual around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range


@lru_cache(maxsize=4096)
def pattern_of(seed: int, period: int) -> Tensor:
    """The pattern of a task, float32 [period], with mean 0 and variance 1."""
    drawn = np.random.default_rng(seed).standard_normal(period)
    return torch.from_numpy(((drawn - drawn.mean()) / drawn.std()).astype(np.float32))


@dataclass(frozen=True)
class SeriesState:
    """`phase` int64 [B]: where in the pattern; `residual` float32 [B]; `step` int64 [B]: steps answered so far."""

    phase: Tensor
    residual: Tensor
    step: Tensor


class Series(BatchedEnv):
    """v = pattern[phase] + u, u' = ar u + sqrt(1 - ar^2) noise e, e from N(0, 1), and u from N(0, noise^2) at first.

    Observation: float32 [B, 2], the value v and the phase, an integer from 0 to `period` - 1. The action [B, 1] is the
    next value. An episode begins at a random phase, has `length` steps and terminates. The reward of a step is minus
    the squared error over `length`, so the return is minus the mean squared error. At best it is -(1 - ar^2) noise^2,
    and whoever always says 0 has -(1 + noise^2), both of which the score takes for the default parameters. Every step's
    info has the truth, `target` float32 [B, 1], and `target_mask` bool [B].

    Args:
        num_envs: number of copies B.
        period: steps of the pattern.
        length: steps of an episode.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "pattern": Param(0, 0, 2**31, "seed of the pattern", integer=True),
        "ar": Param(0.8, 0.0, 0.999, "share of the residual that is left after a step"),
        "noise": Param(0.5, 0.0, 10.0, "standard deviation of the residual"),
    }
    SCORE: ClassVar[tuple[float, float]] = (-1.25, -0.09)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        period: Annotated[int, Range(2, 10_000)] = 24,
        length: Annotated[int, Range(1, 100_000)] = 96,
        **kwargs: Any,
    ) -> None:
        self.period, self.length = period, length
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Value and phase; a value."""
        low, high = np.array([-np.inf, 0.0], np.float32), np.array([np.inf, self.period - 1.0], np.float32)
        return Box(low, high, dtype=np.float32), Box(-np.inf, np.inf, (1,), np.float32)

    def draw_state(self) -> SeriesState:
        """A phase, and a residual from its stationary distribution."""
        residual = self.params["noise"] * self._normal()
        return SeriesState(self.randint(self.period, self.num_envs), residual, torch.zeros_like(self.age_B))

    def advance(self, state: SeriesState, action: Tensor) -> tuple[SeriesState, Tensor, Tensor, dict[str, Tensor]]:
        """The next value, and how far off the prediction of it was."""
        ar = self.params["ar"]
        residual = ar * state.residual + (1 - ar.square()).sqrt() * self.params["noise"] * self._normal()
        following = SeriesState((state.phase + 1) % self.period, residual, state.step + 1)
        target = self._value(following)
        reward = -(action.squeeze(1) - target).square() / self.length
        info = {"target": target.unsqueeze(1), "target_mask": torch.ones_like(target, dtype=torch.bool)}
        return following, reward, following.step >= self.length, info

    def observe(self, state: SeriesState) -> Tensor:
        """The value and the phase."""
        return torch.stack([self._value(state), state.phase.float()], 1)

    def params_changed(self) -> None:
        """Look up what belongs to the task of every copy."""
        rows = [pattern_of(seed, self.period) for seed in self.params["pattern"].tolist()]
        self.pattern_BW = torch.stack(rows).to(self.device)

    def _value(self, state: SeriesState) -> Tensor:
        return self.pattern_BW.gather(1, state.phase.unsqueeze(1)).squeeze(1) + state.residual

    def _normal(self) -> Tensor:
        return torch.empty(self.num_envs, device=self.device).normal_(generator=self.generator)
