"""Converter: observations and actions of somebody else's program, and what the policy reads and draws."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from torch import Tensor

from lifelong.agent.errors import EnvError
from lifelong.envs.adapters.outside import OutsideEnv
from lifelong.envs.tasks import TaskEnv


class Converter:
    """In both directions, for one environment or a batch of them with a leading axis.

    Args:
        env: tasks whose environments are all `OutsideEnv`.
        dtype: of real numbers that the policy reads.
        device: of the policy.
    """

    def __init__(self, env: TaskEnv, dtype: torch.dtype, device: torch.device) -> None:
        self.env, self.dtype, self.device = env, dtype, device
        self._numpy = torch.empty(0, dtype=dtype).numpy().dtype
        #: of observations that are read as they are given, by task
        self._shapes = {task: self._outside(task).given.shape for task in range(len(env.tasks)) if self._is_plain(task)}

    def _outside(self, task: int) -> OutsideEnv:
        env = self.env.envs[self.env.group_of[task]]
        assert isinstance(env, OutsideEnv)
        return env

    def lead(self, obs: Any, task: int) -> tuple[int, ...]:
        """() for the observation of one environment, (B,) for those of a batch.

        Raises:
            EnvError: it is neither.
        """
        return lead_of(self._outside(task).given, obs)

    def observations(self, obs: Any, task: int, lead: tuple[int, ...]) -> Tensor:
        """Observations as the policy reads them, [B, ...]; of one environment B is 1.

        Args:
            obs: numpy, torch, numbers or lists, of a Dict or Tuple space nested as it is.
            task: whose environment they are of.
            lead: () or (B,).

        Raises:
            EnvError: another shape or kind of number, or one that is not finite; names what it is.
        """
        shape = self._shapes.get(task)
        if shape is not None and type(obs) is np.ndarray and obs.dtype.kind == "f" and obs.shape == (*lead, *shape):
            array = obs.astype(self._numpy).reshape(-1, *shape)
            flat = array.reshape(-1)
            if math.isfinite(float(flat.dot(flat))):  # else the other way says what is wrong, or that it is not
                return torch.from_numpy(array).to(self.device)
        return self._read(obs, task, lead)

    def _read(self, obs: Any, task: int, lead: tuple[int, ...]) -> Tensor:
        """Observations of any space."""
        env, count = self._outside(task), math.prod(lead)
        arrays = plain_arrays(env.given, obs, lead)
        read = env.encoder.batch(arrays, count) if env.encoder else torch.from_numpy(arrays)
        made = self.env.read(self.env.group_of[task], read).to(self.device)
        return made.to(self.dtype) if made.is_floating_point() else made

    def plain(self) -> bool:
        """Whether observations of every task are read as they are given, in the policy's type of numbers."""
        return all(task in self._shapes for task in range(len(self.env.group_of)))

    def _is_plain(self, task: int) -> bool:
        space = self._outside(task).given
        if not isinstance(space, Box) or space.dtype.kind != "f" or not space.shape:
            return False
        seen = np.linspace(0.1, 0.9, math.prod(space.shape)).astype(space.dtype).reshape(space.shape)
        read = self._read(seen, task, ())
        return read.shape[1:] == seen.shape and np.array_equal(read[0].cpu().numpy(), seen.astype(self._numpy))

    def actions(self, action: Tensor, task: int, lead: tuple[int, ...]) -> Any:
        """Clipped actions [B, ...] of the policy as the environment's `step` takes them: an array of its space's type,
        with a leading axis for a batch; an int for one environment with a Discrete space."""
        group = self.env.group_of[task]
        space = self.env.envs[group].single_action_space
        if not lead and isinstance(space, Discrete):
            count = self.env.action_count[group] if self.env.padded else space.n
            return min(int(action), int(count) - 1) + int(space.start)
        array = self.env.given(group, action).cpu().numpy().astype(space.dtype).reshape(-1, *(space.shape or ()))
        return array if lead else array[0]

    def mask(self, task: int, count: int) -> Tensor:
        """Which actions there are, bool [B, A], or [B, 0] where nothing is padded."""
        if not self.env.padded:
            return torch.ones(count, 0, dtype=torch.bool, device=self.device)
        group = self.env.group_of[task]
        actions = torch.arange(max(self.env.action_count), device=self.device)
        return (actions < self.env.action_count[group]).expand(count, -1)


def _parts(space: gymnasium.Space[Any], obs: Any) -> list[tuple[Any, gymnasium.Space[Any], Any]]:
    """Name, space and value of every part of an observation of a Dict or Tuple space."""
    if isinstance(space, Dict):
        if not isinstance(obs, dict) or obs.keys() != space.spaces.keys():
            given = (
                f"has the parts {', '.join(map(str, obs))}" if isinstance(obs, dict) else f"is a {type(obs).__name__}"
            )
            raise EnvError(f"the observation {given}; it must be a dict with the parts {', '.join(space.spaces)}")
        return [(name, part, obs[name]) for name, part in space.spaces.items()]
    assert isinstance(space, Tuple)
    if not isinstance(obs, (tuple, list)) or len(obs) != len(space.spaces):
        raise EnvError(f"the observation is a {type(obs).__name__}; it must be a tuple of {len(space.spaces)} parts")
    return [(index, part, each) for index, (part, each) in enumerate(zip(space.spaces, obs, strict=True))]


def plain_array(value: Any, what: str) -> np.ndarray:
    """Numbers as an array of numpy.

    Raises:
        EnvError: they are none.
    """
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise EnvError(f"{what} cannot be read as numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise EnvError(f"{what} is of type {array.dtype}; it must be numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise EnvError(f"{what} has a number that is not finite; nothing was learned from it")
    return array


def lead_of(space: gymnasium.Space[Any], obs: Any) -> tuple[int, ...]:
    """() for an observation of the space, (B,) for a batch of them.

    Raises:
        EnvError: it is neither.
    """
    if isinstance(space, (Dict, Tuple)):
        _, part, value = _parts(space, obs)[0]
        return lead_of(part, value)
    shape, own = plain_array(obs, "the observation").shape, space.shape or ()
    extra = len(shape) - len(own)
    if extra not in (0, 1) or shape[extra:] != own or (extra and not shape[0]):
        raise EnvError(
            f"the observation has shape {shape}; it must be {own} for one environment, or have a leading axis for "
            f"several: the space is {space}"
        )
    return shape[:extra]


def plain_arrays(space: gymnasium.Space[Any], obs: Any, lead: tuple[int, ...]) -> Any:
    """Observations of a batch as arrays of the space's type, nested as the space is."""
    if isinstance(space, (Dict, Tuple)):
        made = {name: plain_arrays(part, value, lead) for name, part, value in _parts(space, obs)}
        return made if isinstance(space, Dict) else tuple(made.values())
    array, wanted = plain_array(obs, "the observation"), (*lead, *(space.shape or ()))
    if array.shape != wanted:
        raise EnvError(f"the observation has shape {array.shape}; it must be {wanted}: the space is {space}")
    if array.dtype.kind == "f" and space.dtype is not None and space.dtype.kind in "iu":
        raise EnvError(f"the observation is {array.dtype}; it must be integers: the space is {space}")
    if array.dtype.kind in "iu" and isinstance(space, Box) and space.dtype.kind in "iu" and array.size:
        limits = np.iinfo(space.dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise EnvError(f"the observation has a number that is no {space.dtype}: the space is {space}")
    if not isinstance(space, Box):
        low = space.start if isinstance(space, (Discrete, MultiDiscrete)) else 0
        count = space.n if isinstance(space, Discrete) else space.nvec if isinstance(space, MultiDiscrete) else 2
        if ((array < low) | (array >= low + count)).any():
            raise EnvError(f"the observation has a number that is not in the space {space}")
    return np.array(array, dtype=space.dtype).reshape(math.prod(lead), *(space.shape or ()))
