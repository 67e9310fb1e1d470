"""Observations and actions with parts as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.spaces.utils import flatdim, flatten

from lifelong.envs.errors import EnvError
from lifelong.envs.spaces import byte_scale, float_box

#: numbers of a text that is read one-hot; a longer one needs an encoder of texts
LONGEST_TEXT = 20_000
#: whole numbers of a Box that are choices when the Box is a part of an action
MOST_CHOICES = 1000


def parts_of(space: Dict | Tuple) -> list[Any]:
    """The spaces of the parts, in the order of the flat vector."""
    return list(space.spaces.values()) if isinstance(space, Dict) else list(space.spaces)


# ---- observations ----------------------------------------------------------------------------------------------------


def text_counts(space: Text) -> np.ndarray:
    """Characters that there are at every place of a text, and none at all, int64 [longest text].

    Raises:
        EnvError: too many to be read one-hot.
    """
    choices, length = len(space.character_set) + 1, space.max_length
    if choices * length > LONGEST_TEXT:
        raise EnvError(
            f"observations have texts of up to {length} of {choices - 1} characters, too many to be read one-hot; "
            "leave them out with wrapper FilterObservation, or encode them in a wrapper of your own"
        )
    return np.full(length, choices)


def flat_box(space: gymnasium.Space[Any]) -> Box:
    """What `flat` gives of a space, as a float32 vector.

    Raises:
        EnvError: a part has no fixed size.
    """
    if isinstance(space, Text):
        return Box(0.0, 1.0, (int(text_counts(space).sum()),), np.float32)
    if isinstance(space, (Dict, Tuple)):
        boxes = [flat_box(part) for part in parts_of(space)]
        low, high = (np.concatenate([np.zeros(0, np.float32), *bounds]) for bounds in _bounds(boxes))
        return Box(low, high, dtype=np.float32)
    if not isinstance(space, (Box, Discrete, MultiBinary, MultiDiscrete)) and not space.is_np_flattenable:
        raise EnvError(f"observations of {space} have no fixed size, so they cannot be made one tensor")
    if isinstance(space, Box):
        plain, scale = float_box(space, (flatdim(space),)), _scale(space)
        return Box(plain.low * scale, plain.high * scale, dtype=np.float32)
    flattened = gymnasium.spaces.utils.flatten_space(space)
    assert isinstance(flattened, Box)
    return float_box(flattened)


def _bounds(boxes: list[Box]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [box.low for box in boxes], [box.high for box in boxes]


def _scale(space: Box) -> np.float32:
    """Bytes are divided by the largest of their space."""
    return np.float32(1 / byte_scale(space) if space.dtype == np.uint8 else 1.0)


def flat(space: gymnasium.Space[Any], value: Any) -> np.ndarray:
    """An observation as a vector: its parts one after the other, categories and characters one-hot, bytes in [0, 1]."""
    if isinstance(space, (Dict, Tuple)):
        values = [value[name] for name in space.spaces] if isinstance(space, Dict) else value
        parts = [flat(part, each) for part, each in zip(parts_of(space), values, strict=True)]
        return np.concatenate([np.zeros(0, np.float32), *parts])
    if isinstance(space, Text):
        return np.eye(len(space.character_set) + 1, dtype=np.float32)[text(space, value)].reshape(-1)
    if isinstance(space, Box):
        return np.asarray(value, np.float32).reshape(-1) * _scale(space)
    return np.asarray(flatten(space, value), np.float32)


def text(space: Text, value: str) -> np.ndarray:
    """The characters of a text as numbers, int64 [longest text]; the last number stands for none."""
    return np.asarray(flatten(space, value), np.int64)


# ---- actions ---------------------------------------------------------------------------------------------------------


class ActionDecoder:
    """Actions of a Tuple or Dict as one vector of `space`, and back; any other action space stays as it is.

    Parts that are all choices (Discrete, MultiDiscrete, MultiBinary, a Box of few whole numbers) are one MultiDiscrete;
    parts that are all Boxes are one Box.

    Args:
        source: action space of one copy.

    Raises:
        EnvError: parts of both kinds, or of another one.
    """

    def __init__(self, source: gymnasium.Space[Any]) -> None:
        self.source = source
        self.nested = isinstance(source, (Dict, Tuple))
        self.space = source
        if not self.nested:
            return
        leaves = list(_leaves(source))
        for leaf in leaves:
            if not isinstance(leaf, (Box, Discrete, MultiBinary, MultiDiscrete)):
                raise EnvError(f"cannot act in {leaf}, a part of the action space {source}")
        chosen = [choices(leaf) for leaf in leaves]
        numbers = [each for each in chosen if each is not None]
        if len(numbers) == len(leaves) and leaves:
            self.space = MultiDiscrete(np.concatenate(numbers))
        elif not numbers and leaves:
            boxes = [float_box(leaf, (flatdim(leaf),)) for leaf in leaves if isinstance(leaf, Box)]
            low, high = (np.concatenate(bounds) for bounds in _bounds(boxes))
            self.space = Box(low, high, dtype=np.float32)
        else:
            raise EnvError(
                f"the action space {source} has parts that are chosen and parts that are continuous, and a policy has "
                "one kind of head; make it one kind in a wrapper (such as DiscretizeAction)"
            )

    def __call__(self, action: np.ndarray) -> Any:
        """Actions [B, ...] as a vector environment takes them."""
        return self._part(self.source, action, 0)[0] if self.nested else action

    def _part(self, space: gymnasium.Space[Any], action: np.ndarray, first: int) -> tuple[Any, int]:
        if isinstance(space, Dict):
            parts = {}
            for name, part in space.spaces.items():
                parts[name], first = self._part(part, action, first)
            return parts, first
        if isinstance(space, Tuple):
            each = []
            for part in space.spaces:
                made, first = self._part(part, action, first)
                each.append(made)
            return tuple(each), first
        last = first + (1 if isinstance(space, Discrete) else int(np.prod(space.shape or ())))
        values = action[:, first:last]
        if isinstance(space, (Discrete, MultiDiscrete)):
            values = values + np.asarray(space.start).reshape(-1)
        elif isinstance(space, Box) and choices(space) is not None:
            values = values + space.low.reshape(-1)
        return values.reshape(len(action), *(space.shape or ())).astype(space.dtype), last


def _leaves(space: gymnasium.Space[Any]) -> Iterator[gymnasium.Space[Any]]:
    if isinstance(space, (Dict, Tuple)):
        for part in parts_of(space):
            yield from _leaves(part)
    else:
        yield space


def choices(space: gymnasium.Space[Any]) -> np.ndarray | None:
    """How many choices there are for every number of an action, int64; None if they are continuous."""
    if isinstance(space, Discrete):
        return np.asarray([int(space.n)])
    if isinstance(space, MultiDiscrete):
        return space.nvec.flatten()
    if isinstance(space, MultiBinary):
        return np.full(int(np.prod(space.shape)), 2)
    if isinstance(space, Box) and space.dtype.kind in "iu":
        counts = space.high.astype(np.float64) - space.low.astype(np.float64) + 1
        if (counts <= MOST_CHOICES).all():
            return counts.astype(np.int64).flatten()
    return None
