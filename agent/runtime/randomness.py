"""The randomness that a process has once: Python's `random` and numpy's `np.random`, which environments may use."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = tuple[Any, Any]


def seed_globals(seed: int) -> None:
    """Start both from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


def globals_now() -> State:
    """The states of both."""
    return random.getstate(), np.random.get_state()


def as_tensors(state: State) -> dict[str, Any]:
    """A state as a checkpoint holds it."""
    (version, words, spare), (name, keys, position, has_spare, numpys_spare) = state
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), spare],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_spare), float(numpys_spare)],
    }


def set_globals(saved: dict[str, Any]) -> None:
    """Go on from what `as_tensors` gave."""
    version, words, spare = saved["python"]
    random.setstate((version, tuple(words.tolist()), spare))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


@contextmanager
def aside(seed: int) -> Iterator[None]:
    """What runs inside draws from `seed`; what comes after does not notice."""
    before = globals_now()
    seed_globals(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextmanager
def untouched() -> Iterator[None]:
    """What runs inside may seed and draw as it likes, torch's own generator included; what comes after does not
    notice."""
    before, torch_before = globals_now(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(torch_before)
