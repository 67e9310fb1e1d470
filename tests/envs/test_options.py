"""What an annotation says is what an option takes: types, ranges, lists, choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import pytest

from lifelong.envs.options import LARGEST, Count, Interval, Range, Share, Widths, brief, parameters_of, problem


class Sized(Protocol):
    size: int


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -3], [True, 1.5, "1", None, math.nan, 10**16]),
        (float, [0, 1.5, -1e14], [False, "x", None, math.nan, math.inf, -math.inf, 1e16, 10**400]),
        (bool, [True, False], [0, 1, "yes", None]),
        (str, ["", "x"], [1, None, ["x"]]),
        (Share, [0, 1, 0.5], [-1e-9, 1.0000001, math.nan, True]),
        (Count, [1, 10**6], [0, 1.0, 10**6 + 1, 2**63]),
        (Annotated[float, Range(0.0, 1.0, above=True)], [1e-30, 1], [0, 0.0]),
        (int | None, [None, 3], ["x", 1.5]),
        (bool | None, [None, True], [7]),
        (Literal["a", "b"], ["a"], ["c", 1, None]),
        (Literal[0, 1], [0, 1], [2, True]),
        (Widths, [[], [1, 2], (3,)], [64, "64", [0], [1.5], [[1]], {"a": 1}]),
        (list[int], [[1]], [[1.5], 1, "ab"]),
        (Sequence[str], [["a"]], ["ab", [1]]),
        (Interval, [[0, 1], (-1.5, 2)], [[1], [1, 2, 3], [0, math.nan], 1]),
        (tuple[int, ...], [[1, 2, 3], []], [["a"]]),
        (Mapping[str, int], [{"a": 1}], [[], 1]),
        (Any, [1, "x", None], []),
        (Sized, [1, []], []),
        (dict, [{}], [[], 1]),
    ],
)
def test_an_annotation_takes_its_values_and_no_others(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if problem(hint, value) is not None] == []
    assert [value for value in bad if problem(hint, value) is None] == []


def test_the_sentence_is_true_of_the_value() -> None:
    assert problem(Annotated[int, Range(1)], 0) == "an integer of at least 1"
    assert problem(Annotated[int, Range(1)], 2**63) == f"an integer of at most {LARGEST:g}"
    assert problem(Share, 2) == "a number of at least 0 and at most 1"


def test_a_class_without_options_of_its_own_has_those_of_its_base() -> None:
    class Base:
        def __init__(self, given: int, *, width: int = 3) -> None: ...

    class Derived(Base):
        def __init__(self, given: int, *, depth: float = 0, **rest: Any) -> None: ...

    found = parameters_of(Derived)
    assert {name: hint for name, (_, hint) in found.items()} == {"width": int, "depth": float}
    assert problem(found["depth"][1], 0.9) is None  # its type is not that of its default


def test_options_of_a_base_are_those_that_are_handed_on_to_it() -> None:
    class Base:
        def __init__(self, *, width: int = 3) -> None: ...

    class Fixed(Base):
        def __init__(self, *, depth: int = 1) -> None: ...

    class Open(Fixed):
        def __init__(self, *, height: int = 1, **options: Any) -> None: ...

    assert list(parameters_of(Fixed)) == ["depth"]
    assert list(parameters_of(Open)) == ["depth", "height"]


@pytest.mark.parametrize("value", ["x" * 1000, list(range(1000)), {"a": "\x1b" * 500}, None, 3])
def test_a_value_is_shown_briefly_and_printably(value: Any) -> None:
    assert len(brief(value)) <= 60 and brief(value).isprintable()
