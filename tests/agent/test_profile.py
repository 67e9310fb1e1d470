"""`lifelong profile`: the parts of a step, planned and watched."""

from __future__ import annotations

import re
import time

import pytest

from lifelong.agent.cli import main
from lifelong.agent.profile import Watch


def rows(text: str) -> dict[str, tuple[float, int]]:
    """Name -> microseconds and share."""
    found = re.findall(r"^(.+?) +(-?[0-9.]+) +(-?[0-9]+)%", text, re.MULTILINE)
    return {name: (float(each), int(share)) for name, each, share in found}


def whole(text: str) -> float:
    told = re.search(r": ([0-9.]+) us a step", text)
    assert told is not None
    return float(told[1])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (["tmaze"], ["act: elstm_act", "act: transition", "learn: vtrace", "learn: adam", "read the parameters"]),
        (["quickstart", "strategy=lwf"], ["act", "loss", "carry", "LwF: extra_loss", "optimiser"]),
    ],
)
def test_the_parts_of_a_step_are_told_and_add_up(
    config: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *config, "--chunks", "6"]) == 0
    text = capsys.readouterr().out
    found = rows(text)
    floor = found.pop("products alone")
    assert floor[0] > 0 and {*expected, "between these"} <= found.keys()
    assert sum(each for each, _ in found.values()) == pytest.approx(whole(text), abs=0.05)
    assert all(each >= 0 for name, (each, _) in found.items() if name != "between these")


def test_a_part_is_told_without_what_is_inside_it() -> None:
    watch = Watch()

    def busy(seconds: float) -> None:
        begun = time.process_time()
        while time.process_time() - begun < seconds:
            pass

    with watch.part("outer"):
        busy(0.02)
        with watch.part("inner"):
            busy(0.1)
    assert watch.seconds["inner"] >= 0.1
    assert 0.02 <= watch.seconds["outer"] < 0.1


@pytest.mark.parametrize(("arguments", "told"), [(["tmaz"], "tmaze"), (["tmaze", "--chunks", "0"], "at least 1")])
def test_mistakes_are_told_before_anything_runs(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == 2
    assert told in capsys.readouterr().err
