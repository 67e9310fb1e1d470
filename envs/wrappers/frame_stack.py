"""FrameStack: the last observations side by side."""

from __future__ import annotations

from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor

from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range
from lifelong.envs.wrappers.layer import Layer


class FrameStack(Layer):
    """The last `frames` 4 observations, oldest first: vectors and categories one after the other, images channel by
    channel in the last axis. An episode begins with its first observation repeated.

    After Mnih et al. (2015, "Human-level control through deep reinforcement learning").
    """

    OPTIONS = {"frames": (4, Annotated[int, Range(1, 1000)])}
    frames: int

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Observations `frames` times as wide, and the actions of the environment."""
        space, actions = super().spaces()
        times = self.frames
        if isinstance(space, Discrete):
            counts, first = np.full(times, int(space.n)), np.full(times, int(space.start))
            return MultiDiscrete(counts, start=first), actions
        if isinstance(space, MultiDiscrete) and len(space.shape) == 1:
            return MultiDiscrete(np.tile(space.nvec, times), space.dtype, start=np.tile(space.start, times)), actions
        if isinstance(space, Box) and space.shape:
            low, high = (np.concatenate([bound] * times, -1) for bound in (space.low, space.high))
            return Box(low, high, dtype=space.dtype.type), actions
        raise EnvError(f"wrapper frame_stack cannot stack observations of {space}; it needs a Box or categories")

    def draw_state(self) -> Any:
        state = super().draw_state()
        first = super().observe(state)
        return self.put(state, stacked=torch.stack([first] * self.frames, 1))

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        following, reward, terminated, info = super().advance(self.own(state), action)
        newest = super().observe(following).unsqueeze(1)
        stacked = torch.cat((state.stacked[:, 1:], newest), 1)
        return self.put(following, stacked=stacked), reward, terminated, info

    def observe(self, state: Any) -> Tensor:
        stacked: Tensor = state.stacked
        if stacked.dim() <= 3:  # [B, k] and [B, k, n]
            return stacked.reshape(stacked.shape[0], -1)
        moved = stacked.movedim(1, -2)  # [B, ..., k, channels]
        return moved.reshape(*moved.shape[:-2], -1)
