"""Every option of every registered part says what it may be, so that configs are checked and editors complete them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest

from lifelong.agent.errors import ConfigError
from lifelong.agent.registry import REGISTRY, build, check_options, load
from lifelong.agent.schema import options
from lifelong.envs.options import LARGEST, Range, problem

PARTS = [(kind, name) for kind, names in REGISTRY.items() for name in names]
#: what the wrapped environment is called, and what wrappers take, is for them to judge; parts of a cell are cells
FREE = {("gymnasium", name) for name in ("id", "env", "wrappers")} | {("envpool", "id")}
FREE |= {("stack", "layers"), ("ensemble", "cells")}


def unbounded(hint: Any) -> Iterator[Any]:
    """The numbers and words inside of an annotation of which it does not say which ones they may be."""
    if get_origin(hint) is Annotated:
        if not any(isinstance(extra, Range) for extra in get_args(hint)[1:]):
            yield from unbounded(get_args(hint)[0])
    elif get_origin(hint) is dict:  # keyword arguments of somebody else's
        return
    elif get_args(hint):
        yield from (each for argument in get_args(hint) for each in unbounded(argument))
    elif hint in (int, float, str, Any):
        yield hint


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=str)
def test_numbers_have_a_range_and_words_are_listed(kind: str, name: str) -> None:
    for option, (default, hint) in options(kind, name).items():
        if (name, option) not in FREE:
            assert not list(unbounded(hint)), f"{option}: {hint}"
            assert default is None or problem(hint, default) is None, f"{option}: its own default is refused"


@pytest.mark.parametrize(("kind", "name"), [part for part in PARTS if part[0] != "env"], ids=str)
def test_no_option_takes_a_number_or_a_word_that_is_absurd(kind: str, name: str) -> None:
    for option, (_, hint) in options(kind, name).items():
        for value in (-1e300, LARGEST * 2, float("nan"), float("inf"), "", "x" * 5000, {"a": 1}, [[[]]]):
            assert problem(hint, value) is not None, (option, value)
            with pytest.raises(ConfigError, match=option):
                check_options(kind, name, load(kind, name), {option: value}, {})


def test_what_the_runtime_decides_about_an_optimiser_is_no_option() -> None:
    import torch

    for name in REGISTRY["optimizer"]:
        for option in ("capturable", "differentiable"):
            assert option not in options("optimizer", name)
            with pytest.raises(ConfigError, match=option):
                build("optimizer", {"kind": name, option: True}, [torch.zeros(1)], **{option: False})
