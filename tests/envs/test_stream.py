"""Schedules: who is on which task when, as a function of the step alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong.agent.registry import REGISTRY, load
from lifelong.envs.errors import EnvError
from lifelong.envs.stream import (
    Blurry,
    Drift,
    Interleaved,
    Phases,
    Random,
    Schedule,
    Segment,
    Sequential,
    TaskStream,
    quantiles,
)
from lifelong.envs.tasks import Task

STEPS = [100, 300, 200]


def stream(schedule: Schedule, specs: list[dict[str, Any]] | None = None) -> TaskStream:
    specs = specs or [{"kind": "TMaze", "corridor": 3 + i} for i in range(len(schedule.steps))]
    tasks = [Task.from_spec(f"t{i}", spec, 100) for i, spec in enumerate(specs)]
    return TaskStream(tasks, schedule)


def shares(stream: TaskStream, step: int, copies: int) -> list[float]:
    count = torch.bincount(stream.tasks_at(step, copies), minlength=len(stream.tasks))
    return [float(c) / copies for c in count]


def test_sequential_goes_through_the_tasks_in_cycles() -> None:
    schedule = Sequential(STEPS, 2, 0)
    borders = [0, 100, 400, 600, 700, 1000, 1200]
    expected = [Segment(a, b, i % 3) for i, (a, b) in enumerate(pairwise(borders))]
    assert schedule.segments == expected and schedule.total_steps == 1200
    made = stream(schedule)
    for step, task in [(0, 0), (99, 0), (100, 1), (399, 1), (400, 2), (600, 0), (1199, 2)]:
        assert made.tasks_at(step, 5).tolist() == [task] * 5
        assert made.segments[made.segment_at(step)].task == task
    assert [made.training_end(task) for task in range(3)] == [700, 1000, 1200]


def test_segment_borders_belong_to_the_segment_that_starts() -> None:
    schedule = Sequential(STEPS, 2, 0)
    for index, segment in enumerate(schedule.segments):
        assert schedule.segment_at(segment.start) == index == schedule.segment_at(segment.end - 1)
    assert schedule.segment_at(10**9) == 5


@pytest.mark.parametrize("copies", [3, 6, 64, 300])
def test_interleaved_gives_every_task_its_exact_share_all_the_time(copies: int) -> None:
    made = stream(Interleaved(STEPS, 2, 0))
    assert made.total_steps == 1200 and made.segments == [Segment(0, 1200, None)]
    for step in (0, 500, 1199):
        for share in shares(made, step, copies):
            assert abs(share - 1 / 3) <= 1 / copies + 1e-12
        if copies % 3 == 0:
            assert shares(made, step, copies) == [1 / 3] * 3
    assert torch.equal(made.tasks_at(0, copies), made.tasks_at(777, copies))  # nobody moves
    assert made.training_end(1) == 1200


def test_random_never_draws_a_task_twice_in_a_row_and_draws_all_of_them_alike() -> None:
    schedule = Random([3000] * 4, 10, 0, every=10)
    tasks = [segment.task for segment in schedule.segments]
    assert len(tasks) == 12_000 and all(a != b for a, b in pairwise(tasks))
    assert all(abs(count / 12_000 - 0.25) < 0.02 for count in Counter(tasks).values())
    follows = Counter(pairwise(tasks))
    assert len(follows) == 12 and all(abs(count / 12_000 - 1 / 12) < 0.015 for count in follows.values())


def test_random_covers_the_stream_even_if_its_period_does_not_divide_it_and_depends_on_its_seed() -> None:
    schedule = Random(STEPS, 1, 3, every=70)
    assert schedule.total_steps == 600 and schedule.segments[-1].start == 560
    assert all(a.end == b.start for a, b in pairwise(schedule.segments))
    assert schedule.segments == Random(STEPS, 1, 3, every=70).segments
    assert any(schedule.segments != Random(STEPS, 1, seed, every=70).segments for seed in range(4, 8))
    assert {s.task for s in Random([500], 1, 0, every=100).segments} == {0}  # one task alone is allowed


def test_blurry_mixes_linearly_around_each_border() -> None:
    made = stream(Blurry(STEPS, 1, 0, width=0.5))  # first border at 100: shorter task 100, so from 75 to 125
    for step, expected in [
        (75, [1, 0, 0]),
        (85, [0.8, 0.2, 0]),
        (100, [0.5, 0.5, 0]),
        (115, [0.2, 0.8, 0]),
        (125, [0, 1, 0]),
    ]:
        assert made.schedule.proportions(step) == pytest.approx(expected)
    # second border at 400: shorter task 200, so from 350 to 450
    for step, expected in [(350, [0, 1, 0]), (375, [0, 0.75, 0.25]), (425, [0, 0.25, 0.75]), (599, [0, 0, 1])]:
        assert made.schedule.proportions(step) == pytest.approx(expected)


@pytest.mark.parametrize("width", [0.3, 1.0])
def test_under_blurry_every_copy_switches_once_a_border(width: float) -> None:
    made = stream(Blurry(STEPS, 2, 0, width=width))
    history = torch.stack([made.tasks_at(step, 16) for step in range(1200)])
    for copy in range(16):
        tasks = history[:, copy].tolist()
        visited = [tasks[0]] + [b for a, b in pairwise(tasks) if a != b]
        assert visited == [0, 1, 2, 0, 1, 2]
    switches = [int((history[1:, copy] != history[:-1, copy]).nonzero()[0]) for copy in range(16)]
    assert len(set(switches)) > 8  # each at its own time


def test_drift_moves_the_parameters_linearly_and_without_a_jump() -> None:
    specs = [{"kind": "CartPole", "length": value, "gravity": 9.8} for value in (0.5, 1.5, 1.0)]
    made = stream(Drift(STEPS, 1, 0), specs)
    for step, length in [(0, 0.5), (50, 1.0), (99.999999, 1.5), (100, 1.5), (250, 1.25), (400, 1.0), (599, 1.0)]:
        assert made.params_at(step) == pytest.approx({"length": length, "gravity": 9.8}, abs=1e-6)
    largest = max(abs(made.params_at(s)["length"] - made.params_at(s + 1)["length"]) for s in range(599))
    assert largest <= 0.01 + 1e-9


def test_drift_moves_a_parameter_that_only_one_task_names_from_and_to_its_default() -> None:
    specs = [{"kind": "CartPole", "length": 1.5}, {"kind": "CartPole"}, {"kind": "CartPole", "gravity": 19.6}]
    made = stream(Drift([100, 100, 100], 1, 0), specs)
    assert made.params_at(0) == {"length": 1.5} and made.params_at(50) == pytest.approx({"length": 1.0})
    assert made.params_at(150) == pytest.approx({"gravity": 14.7})
    assert made.smooth and not stream(Sequential(STEPS, 1, 0)).smooth


def test_other_schedules_move_no_parameters() -> None:
    assert stream(Sequential(STEPS, 1, 0)).params_at(50) == {}


@pytest.mark.parametrize(
    "specs",
    [
        [{"kind": "CartPole"}, {"kind": "Acrobot"}],
        [{"kind": "TMaze", "distractors": 1}, {"kind": "TMaze", "distractors": 2}],
    ],
)
def test_drift_over_several_environments_is_refused(specs: list[dict[str, Any]]) -> None:
    with pytest.raises(EnvError, match="drift moves the parameters of one environment"):
        stream(Drift([100, 100], 1, 0), specs)


@pytest.mark.parametrize(
    ("schedule", "options"), [(Random, {"every": 0}), (Blurry, {"width": 0.0}), (Blurry, {"width": 1.5})]
)
def test_options_that_make_no_sense_are_refused(schedule: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        schedule(STEPS, 1, 0, **options)


# ---- every registered schedule ---------------------------------------------------------------------------------------

every_schedule = pytest.mark.parametrize("name", list(REGISTRY["schedule"]))


@every_schedule
@settings(max_examples=25)
@given(data=st.data())
def test_copies_are_shared_out_by_the_proportions_however_many_there_are(name: str, data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.integers(10, 500), min_size=1, max_size=5))
    cycles = data.draw(st.integers(1, 3))
    made = stream(load("schedule", name)(steps, cycles, 5))
    assert made.total_steps == sum(steps) * cycles
    step = data.draw(st.integers(0, made.total_steps - 1))
    proportions = made.schedule.proportions(step)
    assert len(proportions) == len(steps) and sum(proportions) == pytest.approx(1.0) and min(proportions) >= 0
    copies = data.draw(st.integers(1, 200))
    for share, expected in zip(shares(made, step, copies), proportions, strict=True):
        assert abs(share - expected) <= 1 / copies + 1e-9


@every_schedule
def test_a_stream_is_resumed_by_knowing_the_step(name: str) -> None:
    walked, fresh = (stream(load("schedule", name)(STEPS, 2, 7)) for _ in range(2))
    seen = [(walked.tasks_at(s, 9).tolist(), walked.params_at(s), walked.segment_at(s)) for s in range(0, 1200, 13)]
    for index in (80, 3, 41):  # any step, in any order
        step = index * 13
        assert (fresh.tasks_at(step, 9).tolist(), fresh.params_at(step), fresh.segment_at(step)) == seen[index]


@every_schedule
def test_segments_cover_the_stream_without_gaps_and_every_task_has_an_end(name: str) -> None:
    made = stream(load("schedule", name)(STEPS, 2, 7))
    assert made.segments[0].start == 0 and made.segments[-1].end == made.total_steps == 1200
    assert all(a.end == b.start for a, b in pairwise(made.segments))
    assert all(0 < made.training_end(task) <= 1200 for task in range(3))


@pytest.mark.parametrize("copies", [1, 2, 7, 64, 1000])
def test_quantiles_are_evenly_spaced_and_neighbours_are_spread(copies: int) -> None:
    got = quantiles(copies)
    torch.testing.assert_close(got.sort().values, (torch.arange(copies, dtype=torch.float64) + 0.5) / copies)
    for start in range(0, copies - 20, 20):  # a worker's share of the copies sees every task about alike
        assert abs(float((got[start : start + 20] < 0.5).double().mean()) - 0.5) <= 0.15


def test_a_share_ends_the_stream_early_and_changes_nothing_before() -> None:
    tasks = [Task.from_spec(f"t{i}", {"kind": "CartPole"}, steps) for i, steps in enumerate(STEPS)]
    schedule = Blurry(STEPS, 2, 0)
    whole = TaskStream(tasks, schedule)
    for share in (0.01, 0.3, 0.5, 0.99):
        part = TaskStream(tasks, schedule, share)
        assert part.total_steps == round(share * whole.total_steps) == part.segments[-1].end
        assert [s.start for s in part.segments] == [s.start for s in whole.segments][: len(part.segments)]
        for step in range(0, part.total_steps, 7):
            assert part.segment_at(step) == whole.segment_at(step)
            assert torch.equal(part.tasks_at(step, 16), whole.tasks_at(step, 16))
    with pytest.raises(EnvError, match=r"stream\.share is 0;"):
        TaskStream(tasks, schedule, 0)


@given(
    steps=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    more=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=3), min_size=1, max_size=3),
    kind=st.sampled_from([Sequential, Interleaved, Blurry, Drift, Random]),
    cycles=st.integers(1, 3),
)
@settings(max_examples=60)
def test_a_phase_that_is_added_changes_nothing_before_it(
    steps: list[int], more: list[list[int]], kind: type[Schedule], cycles: int
) -> None:
    options = {"every": 50} if kind is Random else {}
    schedules = [kind(steps, cycles, 3, **options), *(kind(s, 1, 4, **options) for s in more)]
    first, all_ = stream(schedules[0]), stream(Phases(schedules))
    end = first.total_steps
    assert all_.history(end) == first.history(end)
    assert all_.total_steps == end + sum(map(sum, more))
    for step in range(0, end, 17):
        assert torch.equal(all_.tasks_at(step, 7), first.tasks_at(step, 7))
        assert all_.params_at(step) == first.params_at(step)
    tasks = len(steps)
    for step in range(end, all_.total_steps, 17):
        assert int(all_.tasks_at(step, 7).min()) >= tasks
        assert sum(all_.schedule.proportions(step)) == pytest.approx(1.0)
    assert all_.segments[0].start == 0
    assert all(a.end == b.start for a, b in pairwise(all_.segments))
    drawn = {segment.task for segment in first.segments}  # a random schedule may leave a task out
    trained = [task for task in range(tasks) if task in drawn or None in drawn]
    assert all(all_.training_end(task) == first.training_end(task) for task in trained)


def test_a_phase_of_one_task_is_on_that_task_and_a_later_one_may_be_shared() -> None:
    made = stream(Phases([Interleaved([100, 100], 1, 0), Interleaved([50], 1, 0), Interleaved([30, 30], 1, 0)]))
    assert made.segments == [Segment(0, 200, None), Segment(200, 250, 2), Segment(250, 310, None)]
    assert [made.training_end(task) for task in range(5)] == [200, 200, 250, 310, 310]
    assert set(made.tasks_at(260, 8).tolist()) == {3, 4}
