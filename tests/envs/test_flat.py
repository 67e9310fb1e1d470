"""Observations and actions with parts as one vector."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Sequence, Space, Text, Tuple
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space, iterate

from lifelong.envs.adapters.external import SpaceEncoder
from lifelong.envs.adapters.flat import ActionDecoder, flat
from lifelong.envs.errors import EnvError

FLOATS = Box(-2, 3, (2, 2), np.float32)
PLAIN: list[Space[Any]] = [
    Dict({"b": Discrete(3, start=5), "a": FLOATS}),
    Tuple([MultiBinary(3), MultiDiscrete([2, 4]), Dict({"x": FLOATS})]),
]
ACTIONS: list[Space[Any]] = [
    Tuple([Discrete(3, start=-1), MultiDiscrete([2, 4], start=[1, 0]), MultiBinary([2, 2])]),
    Dict({"move": Discrete(4), "few": Box(-2, 2, (2,), np.int32), "in": Tuple([Discrete(2)])}),
    Dict({"a": FLOATS, "b": Tuple([Box(0, 1, (), np.float64)])}),
]


@pytest.mark.parametrize("space", PLAIN, ids=str)
def test_what_has_parts_is_flattened_as_gymnasium_does(space: Space[Any]) -> None:
    space.seed(0)
    for _ in range(20):
        value = space.sample()
        np.testing.assert_allclose(flat(space, value), flatten(space, value).astype(np.float32))
        assert SpaceEncoder(space).space.shape == flatten(space, value).shape


def test_texts_are_categories_alone_and_one_hot_as_a_part() -> None:
    space = Text(4, min_length=0, charset="ab ")
    encoder = SpaceEncoder(space)
    rows = encoder.items(["ba", "    "])
    assert encoder.space == MultiDiscrete([4] * 4)
    letters = [space.character_index(c) for c in "ba"]
    assert rows.tolist() == [[*letters, 3, 3], [space.character_index(" ")] * 4]
    part = flat(Dict({"text": space, "n": Discrete(2)}), {"text": "ba", "n": 1})
    sixteen = part[2:] if part[:2].sum() == 1 and len(part) == 18 and part[1] == 1 else part[:16]
    assert sixteen.reshape(4, 4).argmax(1).tolist() == [*letters, 3, 3] and part.sum() == 5


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (Sequence(Discrete(2)), "no fixed size"),
        (Dict({"g": Graph(FLOATS, None)}), "no fixed size"),
        (Text(10_000), "too many to be read one-hot"),
    ],
)
def test_what_has_no_fixed_size_is_one_sentence(space: Space[Any], sentence: str) -> None:
    with pytest.raises(EnvError, match=sentence):
        SpaceEncoder(space)


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_every_flat_action_is_one_of_the_space_and_all_are_reached(space: Space[Any]) -> None:
    decoder = ActionDecoder(space)
    decoder.space.seed(0)
    seen: list[Any] = []
    for _ in range(60):
        batch = decoder(np.stack([decoder.space.sample() for _ in range(3)]))
        for action in iterate(batch_space(space, 3), batch):
            assert space.contains(action), action
            seen.append(flatten(space, action) if space.is_np_flattenable else action)
    if isinstance(decoder.space, MultiDiscrete):
        rows = np.stack(seen)
        assert (rows.max(0) > rows.min(0)).all()  # of every choice more than one was made


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (Tuple([Discrete(2), FLOATS]), "one kind of head"),
        (Dict({"t": Text(3)}), "cannot act in Text"),
    ],
)
def test_an_action_space_that_no_head_has_is_one_sentence(space: Space[Any], sentence: str) -> None:
    with pytest.raises(EnvError, match=sentence):
        ActionDecoder(space)


def test_other_action_spaces_stay_as_they_are() -> None:
    space: gymnasium.Space[Any] = Discrete(3, start=2)
    assert ActionDecoder(space).space is space
