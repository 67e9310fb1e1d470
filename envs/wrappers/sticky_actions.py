"""StickyActions: now and then the last action is taken again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifelong.envs.base import BatchedEnv, select
from lifelong.envs.options import Share
from lifelong.envs.wrappers.layer import Layer


class StickyActions(Layer):
    """With `probability` 0.25 the environment takes the action that it took before, not the one that it is given; never
    in the first step of an episode.

    Machado et al. (2018, "Revisiting the Arcade Learning Environment", section 5.2).
    """

    OPTIONS = {"probability": (0.25, Share)}
    probability: float

    @classmethod
    def fits(cls, wrapped: type[BatchedEnv]) -> str:
        return "whose actions are predictions of what comes next" if wrapped.PREDICTION else ""

    def draw_state(self) -> Any:
        space: Any = self.single_action_space
        kind: torch.dtype = getattr(torch, str(space.dtype))
        taken = torch.zeros(self.num_envs, *(space.shape or ()), dtype=kind, device=self.device)
        begun = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return self.put(super().draw_state(), taken=taken, begun=begun)

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        sticks = state.begun & (self.uniform(0.0, 1.0, self.num_envs) < self.probability)
        taken = select(sticks, state.taken, action.to(state.taken.dtype))
        following, reward, terminated, info = super().advance(self.own(state), taken)
        begun = torch.ones_like(state.begun)
        return self.put(following, taken=taken, begun=begun), reward, terminated, info

    def observe(self, state: Any) -> Tensor:
        return super().observe(self.own(state))
