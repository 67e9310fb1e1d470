"""The curriculum: the next task as soon as those in training are known."""

from __future__ import annotations

from typing import Any

import pytest

from lifelong.envs.curriculum import Curriculum
from lifelong.envs.errors import EnvError
from lifelong.envs.stream import Phases, Segment, Sequential, TaskStream
from lifelong.envs.tasks import Task

NAN = float("nan")


def stream(share: float = 1.0, **options: Any) -> TaskStream:
    tasks = [Task.from_spec(f"t{i}", {"kind": "TMaze", "corridor": 3 + i}, 100) for i in range(3)]
    return TaskStream(tasks, Curriculum([100] * 3, 2, 0, criterion=0.9, **options), share)


def shares(made: TaskStream, step: int) -> list[int]:
    tasks = made.tasks_at(step, 6).tolist()
    return [tasks.count(task) for task in range(3)]


def test_the_newest_task_alone_is_trained_until_it_is_known() -> None:
    made = stream()
    assert made.segments == [Segment(0, 600, 0)] and made.total_steps == 600
    assert made.look(50, [0.89, 1.0, 1.0]) == [600, 600, 600]
    assert made.look(80, [NAN, 1.0, 1.0]) == [600, 600, 600]
    assert made.look(120, [0.9, 0.0, 0.0]) == [120, 600, 600]
    assert made.segments == [Segment(0, 120, 0), Segment(120, 600, 1)]
    assert shares(made, 119) == [6, 0, 0] and shares(made, 120) == [0, 6, 0]
    assert 120 in made.borders and made.changes == [120]
    made.look(300, [0.0, 0.95, 0.0])  # what was left may be forgotten
    assert shares(made, 300) == [0, 0, 6] and made.training_ends() == [120, 300, 600]
    made.look(400, [1.0, 1.0, 1.0])  # there is no task after the last one
    assert made.segments[-1] == Segment(300, 600, 2)


def test_with_all_kept_the_copies_are_shared_and_the_mean_must_be_there_too() -> None:
    made = stream(keep="all")
    made.look(100, [0.9, 0.0, 0.0])
    assert shares(made, 100) == [3, 3, 0] and made.training_ends() == [600] * 3
    made.look(200, [0.8, 0.95, 0.0])  # the newest is known, the mean of both is not
    assert shares(made, 200) == [3, 3, 0]
    made.look(300, [0.88, 0.95, 0.0])
    assert shares(made, 300) == [2, 2, 2]


def test_a_stream_goes_on_from_what_was_saved() -> None:
    walked, fresh = stream(), stream()
    walked.look(120, [1.0, 0.0, 0.0])
    fresh.load_state_dict(walked.state_dict())
    assert fresh.segments == walked.segments and fresh.borders == walked.borders
    fresh.look(200, [0.0, 1.0, 0.0])
    assert walked.schedule.met == [120] and fresh.schedule.met == [120, 200]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="trained by a curriculum"):
        Sequential([100], 1, 0).load_state_dict(walked.state_dict())


def test_nothing_changes_at_the_end_of_a_share() -> None:
    made = stream(share=0.5)
    made.look(300, [1.0, 1.0, 1.0])
    assert made.segments == [Segment(0, 300, 0)]


def test_tasks_that_no_copy_would_be_on_are_found_beforehand() -> None:
    assert stream().never_trained(1, 10) == []
    assert stream(keep="all").never_trained(1, 10) == [2]  # one copy among three tasks is in the middle
    assert stream(keep="all").never_trained(2, 10) == []


def test_no_task_is_added_behind_a_curriculum() -> None:
    with pytest.raises(EnvError, match="a curriculum says itself"):
        Phases([Curriculum([100], 1, 0), Sequential([100], 1, 0)])
