"""GaussianMixture: which class does this point belong to? A stream of classification that needs no files.

The kind of data of the micro-continual suite of asi (2026): mixtures in 256 dimensions that are drawn anew from time to
time, which plain gradient descent can follow only if it forgets fast and stays plastic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range


@lru_cache(maxsize=256)
def directions(regime: int, count: int, dim: int) -> Tensor:
    """Standard normal centres of a regime, float32 [count, dim]."""
    return torch.from_numpy(np.random.default_rng(regime).standard_normal((count, dim)).astype(np.float32))


@dataclass(frozen=True)
class GaussianMixtureState:
    """`part` int64 [B]: the component of the point; `noise` float32 [B, dim]: from its centre; `step` int64 [B]."""

    part: Tensor
    noise: Tensor
    step: Tensor


class GaussianMixture(BatchedEnv):
    """A point of a mixture of `classes` x `components` Gaussians of variance 1, and the class is asked for.

    Observation: the point, float32 [B, dim]. Actions: the class. Every step shows another point, of a component that is
    drawn; an episode has `length` of them and terminates. The reward is 1/length if right, so the return is the
    accuracy. The centres are `spread` times the normal numbers of `regime`; with 0.3 the nearest centre, which nothing
    can beat, is right in 98 of 100 cases. Every step's info has the truth, `target` int64 [B], and `target_mask` bool
    [B]. Centres are kept for every copy: classes x components x dim numbers.

    Args:
        num_envs: number of copies B.
        dim: dimensions.
        classes: number of classes.
        components: Gaussians of a class.
        length: points of an episode.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "regime": Param(0, 0, 2**31, "seed of the centres", integer=True),
        "spread": Param(0.3, 0.0, 100.0, "how far the centres are apart"),
    }
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        dim: Annotated[int, Range(1, 10_000)] = 256,
        classes: Annotated[int, Range(2, 1000)] = 10,
        components: Annotated[int, Range(1, 1000)] = 6,
        length: Annotated[int, Range(1, 100_000)] = 100,
        **kwargs: Any,
    ) -> None:
        self.dim, self.classes, self.components, self.length = dim, classes, components, length
        # Depends on an option, hence on the instance.
        self.SCORE = (1.0 / classes, 1.0)  # type: ignore[misc]
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A point; a class."""
        return Box(-np.inf, np.inf, (self.dim,), np.float32), Discrete(self.classes)

    def draw_state(self) -> GaussianMixtureState:
        """A point."""
        return GaussianMixtureState(*self._point(), torch.zeros_like(self.age_B))

    def advance(
        self, state: GaussianMixtureState, action: Tensor
    ) -> tuple[GaussianMixtureState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the answer and show another point."""
        target, step = state.part // self.components, state.step + 1
        info = {"target": target, "target_mask": torch.ones_like(target, dtype=torch.bool)}
        reward = (action == target).float() / self.length
        return GaussianMixtureState(*self._point(), step), reward, step >= self.length, info

    def observe(self, state: GaussianMixtureState) -> Tensor:
        """The point."""
        place = state.part.view(-1, 1, 1).expand(-1, 1, self.dim)
        return self.centres_BKD.gather(1, place).squeeze(1) + state.noise

    def params_changed(self) -> None:
        """Look up what belongs to the task of every copy."""
        regimes, count = self.params["regime"].tolist(), self.classes * self.components
        rows = torch.stack([directions(regime, count, self.dim) for regime in regimes]).to(self.device)
        self.centres_BKD = self.params["spread"].view(-1, 1, 1) * rows

    def _point(self) -> tuple[Tensor, Tensor]:
        part = self.randint(self.classes * self.components, self.num_envs)
        return part, torch.empty(self.num_envs, self.dim, device=self.device).normal_(generator=self.generator)
