"""Old tasks come back: by a power law, as visits, and where performance moves."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lifelong.envs.progress import LearningProgress
from lifelong.envs.recurring import PowerLaw, Visits
from lifelong.envs.stream import Segment, Sequential, TaskStream
from lifelong.envs.tasks import Task

NAN = float("nan")


def slope(tasks: list[int], known: int) -> float:
    """Of returns a chance, over ages, both in logarithms: a fit to 2^(i/2) to 2^((i+1)/2) draws."""
    last, returns, chances = {}, np.zeros(len(tasks) + 1), np.zeros(len(tasks) + 1)
    for n, task in enumerate(tasks):
        if len(last) == known:
            for other, seen in last.items():
                if other != tasks[n - 1]:
                    chances[n - seen] += 1
                    returns[n - seen] += other == task
        last[task] = n
    edges = np.unique(np.round(2 ** np.arange(1, 15, 0.5)).astype(int))
    points = []
    for low, high in pairwise(edges):
        if returns[low:high].sum() >= 50:
            ages = np.arange(low, high)
            middle = np.exp((np.log(ages) * chances[low:high]).sum() / chances[low:high].sum())
            points.append((np.log(middle), np.log(returns[low:high].sum() / chances[low:high].sum())))
    x, y = np.array(points).T
    assert len(points) >= 8
    return float(np.polyfit(x, y, 1)[0])


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_chance_to_come_back_falls_as_a_power_of_the_age(exponent: float) -> None:
    schedule = PowerLaw([10_000] * 40, 1, 3, every=20, exponent=exponent, novelty=0.5)
    tasks = [segment.task or 0 for segment in schedule.segments]
    assert len(tasks) == 20_000
    assert slope(tasks, 40) == pytest.approx(-exponent, rel=0.1)


def test_without_an_exponent_all_known_tasks_come_back_alike() -> None:
    schedule = PowerLaw([3000] * 5, 4, 1, every=10, exponent=0.0)
    late = Counter(segment.task for segment in schedule.segments[1000:])
    assert all(abs(count / sum(late.values()) - 0.2) < 0.02 for count in late.values())


@pytest.mark.parametrize(("novelty", "draws"), [(0.0, 12), (1.0, 12), (0.2, 5), (0.5, 300)])
def test_every_task_of_a_power_law_comes_in_its_order(novelty: float, draws: int) -> None:
    schedule = PowerLaw([2 * draws] * 5, 1, 0, every=10, novelty=novelty)
    tasks = [segment.task for segment in schedule.segments]
    assert len(tasks) == draws
    assert [task for i, task in enumerate(tasks) if task not in tasks[:i]] == [0, 1, 2, 3, 4]
    if novelty == 1.0:
        assert tasks[:5] == [0, 1, 2, 3, 4]
    if novelty == 0.0:
        assert tasks[-4:] == [1, 2, 3, 4]


def test_a_power_law_never_draws_what_is_on() -> None:
    schedule = PowerLaw([1000] * 4, 3, 5, every=10)
    tasks = [segment.task for segment in schedule.segments]
    second = tasks.index(1)
    assert all(a != b for a, b in pairwise(tasks[second:]))


def test_visits_take_their_share_and_go_to_tasks_of_before() -> None:
    schedule = Visits([100_000] * 4, 2, 7, visits=0.3, length=1000)
    assert schedule.total_steps == 800_000
    for whole in Sequential([100_000] * 4, 2, 0).segments:
        parts = [s for s in schedule.segments if whole.start <= s.start < whole.end]
        assert parts[0].start == whole.start and parts[-1].end == whole.end
        visits = [s for s in parts if s.task != whole.task]
        assert all(s.end - s.start == 1000 for s in visits)
        if whole.start == 0:
            assert not visits
        else:
            assert len(visits) == 30
        if whole.start < 400_000:
            assert all((s.task or 0) < (whole.task or 0) for s in visits)
    starts = [s.start for s in schedule.segments if s.task == 0 and s.start > 100_000]
    gaps = np.diff(starts)
    assert gaps.std() > 0.5 * gaps.mean()  # nobody can tell when


def test_other_seeds_draw_other_streams_and_the_same_seed_the_same() -> None:
    for kind, options in ((PowerLaw, {"every": 10}), (Visits, {"length": 10})):
        made: Any = [kind([1000] * 4, 1, seed, **options).segments for seed in (1, 1, 2)]
        assert made[0] == made[1] != made[2]


def progress(**options: Any) -> TaskStream:
    tasks = [Task.from_spec(f"t{i}", {"kind": "TMaze", "corridor": 3 + i}, 100_000) for i in range(3)]
    return TaskStream(tasks, LearningProgress([100_000] * 3, 1, 4, **options))


def test_the_task_that_moves_is_drawn_and_what_is_known_or_too_hard_is_left() -> None:
    made = progress(explore=0.1)
    schedule: Any = made.schedule
    assert made.segments == [Segment(0, 300_000, 0)]
    for k in range(1, 200):
        made.look(1000 * k, [0.9, 0.004 * k, 0.0])  # only the middle one learns
    assert schedule.chances() == pytest.approx([0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3])
    late = Counter(segment.task for segment in made.segments[20:])
    assert late[1] > 0.85 * sum(late.values()) and late[0] and late[2]
    for k in range(200, 240):
        made.look(1000 * k, [max(0.0, 0.9 - 0.02 * (k - 199)), 0.8, 0.0])  # and then the first is forgotten
    assert schedule.chances()[0] > 0.9


def test_progress_is_a_smoothed_change_and_what_was_not_evaluated_keeps_its_own() -> None:
    made = progress(smoothing=0.5)
    schedule: Any = made.schedule
    made.look(10, [0.1, 0.5, 0.0])
    assert schedule.progress == [0.0, 0.0, 0.0] and schedule.chances() == [1 / 3] * 3
    made.look(20, [0.3, 0.1, NAN])
    assert schedule.progress == pytest.approx([0.1, 0.2, 0.0])
    made.look(30, [0.3, NAN, 0.4])
    assert schedule.progress == pytest.approx([0.05, 0.2, 0.2])
    assert not schedule.look(30, [0.0] * 3) and not schedule.look(300_000, [0.0] * 3)


def test_a_stream_of_progress_goes_on_from_what_was_saved() -> None:
    walked, fresh, whole = progress(), progress(), progress()
    seen = np.random.default_rng(0).random((60, 3)).tolist()
    for k, row in enumerate(seen[:30]):
        walked.look(1000 * (k + 1), row)
    fresh.load_state_dict(walked.state_dict())
    assert fresh.segments == walked.segments and fresh.borders == walked.borders
    for k, row in enumerate(seen):
        whole.look(1000 * (k + 1), row)
        if k >= 30:
            fresh.look(1000 * (k + 1), row)
    assert fresh.segments == whole.segments and fresh.training_ends() == whole.training_ends()
    with pytest.raises(ValueError, match="curriculum"):
        Sequential([100], 1, 0).load_state_dict(walked.state_dict())
