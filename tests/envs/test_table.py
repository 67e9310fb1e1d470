"""The table of all environments in docs/environments.md says what the environments say of themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lifelong.agent import registry
from lifelong.envs.tasks import environment_class
from tests.envs.test_contract import NATIVE, make

PAGE = (Path(__file__).parents[2] / "docs/environments.md").read_text()
TABLE = PAGE[PAGE.index("## All at a glance") :]
COLUMNS = ("env", "observation", "actions", "steps", "to be remembered", "package", "source", "oracle")


def cells(name: str) -> dict[str, str]:
    """The row of an environment."""
    found = re.findall(rf"^\| {name} \|(.*)\|$", TABLE, re.MULTILINE)
    assert len(found) == 1, f"{name} has {len(found)} rows"
    values = [name, *(cell.strip() for cell in found[0].split("|"))]
    assert len(values) == len(COLUMNS) and all(values), f"the row of {name} has an empty cell"
    return dict(zip(COLUMNS, values, strict=True))


def fits(said: str, numbers: list[int], known: set[str]) -> bool:
    """Whether a cell has these numbers, or says which option or parameter they follow from."""
    named = re.findall(r"`(\w+)`", said)
    assert set(named) <= known, f"{said}: there is no option {set(named) - known}"
    return bool(named) or [int(n) for n in re.findall(r"\d+", said)][: len(numbers)] == numbers


def sizes(space: gymnasium.Space[Any]) -> list[int]:
    """Of a space the number that a reader counts: axes of observations and vectors, choices of actions."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return [int(space.n)]
    return [int(size) for size in space.shape or ()]


@pytest.mark.parametrize("name", NATIVE)
def test_the_row_of_an_environment_has_its_observation_actions_and_length(name: str) -> None:
    env, row, cls = make(name, 2), cells(name), environment_class(name)
    known = {*cls.all_params(), *registry.options_of(cls)}
    assert fits(row["observation"], sizes(env.single_observation_space), known)
    space, actions = env.single_observation_space, env.single_action_space
    bits = space.dtype == np.uint8 and int(np.max(getattr(space, "high", 255))) == 1
    assert row["observation"].endswith(" bits") == bits
    assert isinstance(actions, gymnasium.spaces.MultiDiscrete) or fits(row["actions"], sizes(actions), known)
    limit = int(env.params["max_episode_steps"][0])
    assert limit == 0 or fits(row["steps"], [limit], known)
