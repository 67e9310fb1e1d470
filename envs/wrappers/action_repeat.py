"""ActionRepeat: an action lasts several steps of the environment."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from lifelong.envs.base import BatchedEnv, select_state
from lifelong.envs.options import Range
from lifelong.envs.wrappers.layer import Layer


class ActionRepeat(Layer):
    """The action is repeated for `times` 4 steps, or until the episode ends; rewards are summed.

    A step of the agent is one step of everything that is counted: of the stream and of `max_episode_steps`, too.
    """

    OPTIONS = {"times": (4, Annotated[int, Range(1, 100)])}
    times: int

    @classmethod
    def fits(cls, wrapped: type[BatchedEnv]) -> str:
        return "whose actions are predictions of what comes next" if wrapped.PREDICTION else ""

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        state, reward, terminated, info = super().advance(state, action)
        for _ in range(self.times - 1):
            following, more, ended, info = super().advance(state, action)
            state = select_state(terminated, state, following)
            reward = reward + torch.where(terminated, torch.zeros_like(more), more)
            terminated = terminated | ended
        return state, reward, terminated, info
