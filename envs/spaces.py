"""The border between an environment's own spaces and the few that policies read and act in.

Policies read float32 or uint8 Boxes with at least one axis and categories that start at 0; they act in Discrete(n) and
MultiDiscrete that start at 0 and in float32 vectors whose finite bounds are -1 and 1. Everything is converted once,
here, in both directions, so no encoder, head, objective or export has to know what an environment calls its numbers.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor

from lifelong.envs.errors import EnvError


def float_box(space: Box, shape: tuple[int, ...] | None = None) -> Box:
    """`space` as a Box of float32; bounds beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    shape = space.shape if shape is None else shape
    return Box(low.reshape(shape), high.reshape(shape), shape, np.float32)


def byte_scale(space: Box) -> float:
    """The largest byte of a uint8 space: bytes divided by it lie in [0, 1]."""
    return max(1.0, float(np.max(space.high, initial=0)))


class ObservationBorder:
    """Turns the observations of an environment, [B, ...], into those of `space`.

    uint8 Boxes stay bytes, other Boxes and MultiBinary become float32, a scalar becomes a vector of one number;
    Discrete and MultiDiscrete become one axis of categories that start at 0.

    Args:
        source: observation space of one copy.

    Raises:
        EnvError: another space.
    """

    space: Box | MultiDiscrete

    def __init__(self, source: gymnasium.Space[Any]) -> None:
        self.source = source
        self.start: Tensor | None = None  # of the categories, where it is not 0
        if isinstance(source, Box):
            shape = source.shape or (1,)
            bytes_ = source.dtype == np.uint8
            low, high = source.low.reshape(shape), source.high.reshape(shape)
            self.space = Box(low, high, shape, np.uint8) if bytes_ else float_box(source, shape)
        elif isinstance(source, MultiBinary):
            self.space = Box(0.0, 1.0, source.shape, np.float32)
        elif isinstance(source, (Discrete, MultiDiscrete)):
            counts, start = _categories(source)
            self.space = MultiDiscrete(counts, dtype=source.dtype)  # type: ignore[arg-type]
            if start.any():
                self.start = torch.as_tensor(start)
        else:
            raise EnvError(
                f"observations of {source} are no tensor; give a Box, Discrete, MultiDiscrete or MultiBinary, or make "
                "the environment through the gymnasium adapter, which flattens Dict and Tuple"
            )
        self.dtype = getattr(torch, str(self.space.dtype))
        #: observations of the environment are those of `space`
        self.plain = self.start is None and (source.dtype, source.shape) == (self.space.dtype, self.space.shape)
        self._plain: torch.Size | None = None  # of observations that are as `space` has them

    def __call__(self, obs: Tensor) -> Tensor:
        """The observations as `space` has them; the same tensor if they are so already.

        Raises:
            EnvError: no tensor, or another shape or kind of number.
        """
        if type(obs) is Tensor and obs.shape == self._plain and obs.dtype is self.dtype:
            return obs
        if not isinstance(obs, Tensor):
            raise EnvError(f"an observation is a {type(obs).__name__}, not a torch tensor")
        if obs.shape[1:] != (self.source.shape or ()):
            raise EnvError(f"observations have shape {tuple(obs.shape)}, but the space is {self.source} in every copy")
        if obs.dtype != self.dtype:
            if obs.is_floating_point() and not self.dtype.is_floating_point:
                raise EnvError(f"observations are {obs.dtype}, but the space is {self.source}")
            obs = obs.to(self.dtype)
        if self.start is not None:
            if self.start.device != obs.device:  # once
                self.start = self.start.to(obs.device)
            obs = (obs.flatten(1) if obs.dim() > 1 else obs.unsqueeze(1)) - self.start
        if obs.shape[1:] != self.space.shape:
            return obs.reshape(obs.shape[0], *self.space.shape)
        if self.start is None and type(obs) is Tensor:
            self._plain = obs.shape
        return obs


class ActionBorder:
    """Turns actions of `space`, which policies act in, into those of an environment.

    Discrete and MultiDiscrete start at 0, MultiBinary is a MultiDiscrete of twos. A Box becomes a vector of float32;
    its entries with finite bounds lie in [-1, 1] and are rescaled to the bounds, the others keep their unit. Of a Box
    of integers every value gets an equal share of [-1, 1].

    Args:
        source: action space of one copy.
        rescale: False for predictions, which keep their unit whatever the bounds are.

    Raises:
        EnvError: a space that nothing can act in.
    """

    space: Box | Discrete | MultiDiscrete

    def __init__(self, source: gymnasium.Space[Any], *, rescale: bool = True) -> None:
        self.source = source
        #: what is added, and the factor before that, where either is not trivial
        self.start: Tensor | None = None
        self.scale: Tensor | None = None
        if isinstance(source, Box):
            self._continuous(source, rescale)
        elif isinstance(source, MultiBinary):
            self.space = MultiDiscrete(np.full(int(np.prod(source.shape)), 2))
        elif isinstance(source, Discrete):
            self.space = Discrete(int(source.n))
            self._begin_at(np.asarray([int(source.start)]))
        elif isinstance(source, MultiDiscrete):
            counts, start = _categories(source)
            self.space = MultiDiscrete(counts)
            self._begin_at(start)
        else:
            raise EnvError(f"cannot act in the action space {source}; valid: Discrete, MultiDiscrete, MultiBinary, Box")
        self.dtype: torch.dtype = getattr(torch, str(source.dtype))
        #: actions of `space` are those of the environment
        self.plain = self.start is None and (source.dtype, source.shape) == (self.space.dtype, self.space.shape)

    def _begin_at(self, start: np.ndarray) -> None:
        if start.any():
            self.start = torch.as_tensor(start)

    def _continuous(self, source: Box, rescale: bool) -> None:
        raw = float_box(source, (int(np.prod(source.shape)),))
        low, high = raw.low.astype(np.float64), raw.high.astype(np.float64)
        if rescale and source.dtype.kind in "iu":
            low, high = low - 0.5, high + 0.5
        with np.errstate(invalid="ignore"):
            span = high - low
        finite = np.isfinite(span) & (span < np.finfo(np.float32).max) & rescale
        if not (finite & ((low != -1) | (high != 1))).any():
            self.space = raw
            return
        one = np.ones_like(raw.low)
        self.space = Box(np.where(finite, -one, raw.low), np.where(finite, one, raw.high))
        low, high = np.where(finite, low, -1), np.where(finite, high, 1)
        self.start = torch.as_tensor((low + high) / 2, dtype=torch.float32)
        self.scale = torch.as_tensor((high - low) / 2, dtype=torch.float32)
        self.low, self.high = torch.as_tensor(raw.low), torch.as_tensor(raw.high)

    def __call__(self, action: Tensor) -> Tensor:
        """The actions [B, ...] as the environment's own."""
        if self.plain:
            return action
        if self.start is not None and self.start.device != action.device:
            self._move(action.device)
        if self.scale is not None:
            action = torch.addcmul(self.start, self.scale, action)  # type: ignore[arg-type]  # there are both
            action = torch.clamp(action if self.dtype.is_floating_point else action.round(), self.low, self.high)
        elif self.start is not None:
            action = action + (self.start if action.dim() > 1 else self.start[0])
        return action.to(self.dtype).reshape(action.shape[0], *(self.source.shape or ()))

    def _move(self, device: torch.device) -> None:
        """Bring what is computed with to the device of the actions, once."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        vars(self).update(tensors)


def _categories(space: Discrete | MultiDiscrete) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of categories and the first of each, one axis."""
    if isinstance(space, Discrete):
        return np.asarray([int(space.n)]), np.asarray([int(space.start)])
    return space.nvec.flatten(), space.start.flatten()
