"""Replay: what is kept, where it goes, what is drawn."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.chunk import SLOTS, Chunk, concatenate, copies_dim
from lifelong.replay.sampling import SAMPLING, Exponential, PowerLaw, TaskBalanced
from lifelong.replay.writing import WRITING, Reservoir, Ring, TaskQuota

T = 3
FIELDS = [f.name for f in fields(Chunk)]


def chunk_of(*numbers: int) -> Chunk:
    """One sequence a number; every field of a sequence is made from its number."""
    n = torch.tensor(numbers)
    rows = n.expand(T, -1)
    real, flag = rows.float(), rows % 2 == 0
    values: dict[str, Any] = dict.fromkeys(FIELDS, real)
    values |= dict.fromkeys(("is_init", "terminated", "truncated", "target_mask"), flag)
    values |= {"obs": real.unsqueeze(-1) + torch.arange(4), "policy": real.unsqueeze(-1).expand(T, -1, 2)}
    values |= {"task": rows, "action": rows, "action_mask": torch.ones(T, len(numbers), 0, dtype=torch.bool)}
    values |= {name: n.float() + 0.5 for name in FIELDS if copies_dim(name) == 0}
    values |= {"state": n.float().unsqueeze(-1).expand(-1, 5), "next_is_init": n % 3 == 0}
    values |= {"final_step": rows[:1], "final_obs": real[:1].unsqueeze(-1)}
    return Chunk(**values)


def make(capacity: int, writing: str = "ring", seed: int = 0) -> SequenceReplay:
    return SequenceReplay(capacity, WRITING[writing](), SAMPLING["uniform"](), seed)


def zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def contents(buffer: SequenceReplay) -> list[int]:
    assert buffer.storage is not None
    return [int(x) for x in buffer.storage.task[0, : buffer.size]]


def test_a_ring_keeps_the_newest_in_the_order_they_came() -> None:
    buffer = make(5)
    buffer.write(chunk_of(0, 1, 2), 10)
    assert contents(buffer) == [0, 1, 2]
    buffer.write(chunk_of(3, 4, 5), 20)
    assert contents(buffer) == [5, 1, 2, 3, 4]
    buffer.write(chunk_of(6, 7), 30)
    assert contents(buffer) == [5, 6, 7, 3, 4]
    assert buffer.stamp.tolist() == [20, 30, 30, 20, 20] and buffer.seen == 8


def test_a_chunk_larger_than_the_ring_leaves_its_last_sequences() -> None:
    buffer = make(3)
    buffer.write(chunk_of(*range(8)), 1)
    assert sorted(contents(buffer)) == [5, 6, 7]


def test_a_sequence_comes_back_whole() -> None:
    buffer = make(6)
    buffer.write(chunk_of(*range(6)), 1)
    sample, rows = buffer.sample(20, 1)
    assert sample.copies == 20 and sample.steps == T
    expected = chunk_of(*rows.tolist())
    for name in FIELDS:
        assert torch.equal(getattr(sample, name), getattr(expected, name)), name


def test_writing_into_a_sample_does_not_change_the_buffer() -> None:
    buffer = make(6)
    buffer.write(chunk_of(*range(6)), 1)
    sample, _ = buffer.sample(6, 1)
    sample.weight.zero_()
    sample.task.fill_(-1)
    assert contents(buffer) == list(range(6))
    assert buffer.storage is not None and buffer.storage.weight.sum() == T * sum(range(6))


def chi_square_p(counts: torch.Tensor) -> float:
    """p value of the counts under equal probabilities (Wilson and Hilferty 1931)."""
    expected = counts.double().mean()
    degrees = counts.numel() - 1
    statistic = float(((counts - expected).square() / expected).sum())
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / (2 / (9 * degrees)) ** 0.5
    return float(0.5 * torch.erfc(torch.tensor(z / 2**0.5)))


@pytest.mark.parametrize("batch", [pytest.param(5, marks=pytest.mark.slow), 25])
def test_a_reservoir_keeps_every_sequence_ever_offered_with_the_same_probability(batch: int) -> None:
    """1,000 offered to 20 places, 300 times over: each tenth of the stream must be kept alike."""
    kept = torch.zeros(10, dtype=torch.int64)
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        place = torch.full((20,), -1)
        for start in range(0, 1000, batch):
            rows = Reservoir().rows(zeros(min(batch, 1000 - start)), zeros(20), start, generator)
            for offset, row in enumerate(rows.tolist()):
                if row >= 0:
                    place[row] = start + offset
        assert bool((place >= 0).all())
        kept += torch.bincount(place // 100, minlength=10)
    assert int(kept.sum()) == 6000
    assert chi_square_p(kept) > 0.01


def test_the_reservoir_test_would_see_a_ring() -> None:
    kept = torch.bincount((Ring().rows(zeros(1000), zeros(20), 0, torch.Generator()) * 0 + 999) // 100, minlength=10)
    assert chi_square_p(kept) < 1e-6


def test_a_long_stream_through_a_reservoir_buffer_is_uniform_in_time() -> None:
    buffer = make(2000, "reservoir")
    for start in range(0, 40_000, 50):
        buffer.write(chunk_of(*range(start, start + 50)), start)
    numbers = torch.tensor(contents(buffer))
    assert len(numbers) == 2000 and len(set(numbers.tolist())) == 2000
    assert chi_square_p(torch.bincount(numbers // 4000, minlength=10)) > 0.01
    assert torch.equal(buffer.stamp, numbers // 50 * 50)


def test_sampling_is_uniform_over_the_rows_in_use_and_touches_no_other() -> None:
    buffer = make(50)
    buffer.write(chunk_of(*range(20)), 1)
    _, rows = buffer.sample(20_000, 1)
    counts = torch.bincount(rows, minlength=20)
    assert counts.numel() == 20 and chi_square_p(counts) > 0.01


def test_a_buffer_goes_through_a_file_and_goes_on_alike() -> None:
    buffer = make(10, "reservoir")
    for start in range(0, 40, 4):
        buffer.write(chunk_of(*range(start, start + 4)), start)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    other = make(10, "reservoir", seed=99)
    other.load_state_dict(torch.load(file, weights_only=True), torch.device("cpu"))
    for each in (buffer, other):
        each.write(chunk_of(40, 41, 42, 43), 40)
    assert contents(buffer) == contents(other) and torch.equal(buffer.stamp, other.stamp)
    (first, rows), (second, others) = buffer.sample(30, 40), other.sample(30, 40)
    assert torch.equal(rows, others)
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_a_buffer_that_is_not_full_can_be_saved_and_filled_later() -> None:
    buffer, other = make(10), make(10)
    buffer.write(chunk_of(0, 1, 2), 1)
    other.load_state_dict(buffer.state_dict(), torch.device("cpu"))
    other.write(chunk_of(3, 4), 2)
    assert contents(other) == [0, 1, 2, 3, 4] and contents(buffer) == [0, 1, 2]


def test_an_empty_buffer_can_be_saved_but_not_sampled() -> None:
    buffer, other = make(10), make(10)
    other.load_state_dict(buffer.state_dict(), torch.device("cpu"))
    with pytest.raises(ValueError, match="empty"):
        other.sample(1, 1)
    with pytest.raises(ValueError, match="at least 1"):
        make(0)


def with_truncations(*counts: int) -> Chunk:
    """A sequence a count, with its first `count` steps truncated and an observation made of number and step."""
    chunk = chunk_of(*range(len(counts)))
    step = torch.arange(max(counts)).unsqueeze(-1).expand(-1, len(counts))
    step = torch.where(step < torch.tensor(counts), step, T)
    obs = (torch.arange(len(counts)) * 10 + step).float().unsqueeze(-1)
    return replace(chunk, final_step=step, final_obs=obs)


def test_sequences_with_more_truncated_steps_than_any_before_make_room_for_them() -> None:
    buffer = make(6)
    none, one, some = with_truncations(0, 0), with_truncations(1, 0), with_truncations(2, 3)
    for step, chunk in enumerate((none, one, some)):
        buffer.write(chunk, step)
        sample, rows = buffer.sample(30, step)
        for copy, row in enumerate(rows.tolist()):
            source, index = (none, one, some)[row // 2], row % 2
            filled = sample.final_step[:, copy] < T
            expected = source.final_step[:, index] < T
            assert int(filled.sum()) == int(expected.sum()) and not filled[int(expected.sum()) :].any()
            for name in SLOTS:
                got = getattr(sample, name)[:, copy][filled]
                assert torch.equal(got, getattr(source, name)[:, index][expected]), name
    other = make(6)
    other.load_state_dict(buffer.state_dict(), torch.device("cpu"))
    assert buffer.storage is not None and other.storage is not None
    assert torch.equal(other.storage.final_step, buffer.storage.final_step)


def test_chunks_side_by_side_come_apart_again() -> None:
    a, b = chunk_of(1, 2), chunk_of(3)
    both = concatenate([a, b])
    assert both.copies == 3
    for part, index in ((a, [0, 1]), (b, [2])):
        for name in FIELDS:
            assert torch.equal(getattr(both.select(torch.tensor(index)), name), getattr(part, name)), name


def resized(buffer: SequenceReplay, capacity: int, writing: str) -> SequenceReplay:
    other = make(capacity, writing, seed=5)
    other.load_state_dict(buffer.state_dict(), torch.device("cpu"))
    return other


@pytest.mark.parametrize("count", [3, 5, 8, 11])
def test_a_ring_of_another_size_keeps_the_newest_and_goes_on_in_order(count: int) -> None:
    buffer = make(5)
    for number in range(count):
        buffer.write(chunk_of(number), number)
    held = list(range(max(0, count - 5), count))
    for capacity in (2, 7):
        other = resized(buffer, capacity, "ring")
        kept = held[-capacity:]
        assert contents(other) == kept and other.stamp[: len(kept)].tolist() == kept
        for number in range(count, count + 9):
            other.write(chunk_of(number), number)
            kept = [*kept, number][-capacity:]
            assert sorted(contents(other)) == kept


def test_a_smaller_reservoir_still_keeps_every_sequence_with_the_same_probability() -> None:
    kept = torch.zeros(10, dtype=torch.int64)
    for seed in range(300):
        buffer = make(40, "reservoir", seed)
        for start in range(0, 400, 50):
            buffer.write(chunk_of(*range(start, start + 50)), start)
        other = resized(buffer, 20, "reservoir")
        for start in range(400, 800, 50):
            other.write(chunk_of(*range(start, start + 50)), start)
        numbers = torch.tensor(contents(other))
        assert len(set(numbers.tolist())) == 20
        assert torch.equal(other.stamp, numbers // 50 * 50)
        kept += torch.bincount(numbers // 80, minlength=10)
    assert chi_square_p(kept) > 0.01


def test_a_larger_reservoir_keeps_all_it_had_and_fills_up_without_gaps() -> None:
    buffer = make(10, "reservoir")
    buffer.write(chunk_of(*range(60)), 1)
    other = resized(buffer, 25, "reservoir")
    had = contents(buffer)
    assert contents(other) == had
    other.write(chunk_of(*range(100, 115)), 2)
    assert contents(other) == [*had, *range(100, 115)]
    other.write(chunk_of(*range(200, 400)), 3)
    assert other.size == 25 and len(set(contents(other))) == 25


def test_sequences_of_another_length_are_refused() -> None:
    buffer, other = make(5), make(5)
    buffer.write(chunk_of(0, 1), 1)
    other.load_state_dict(make(5).state_dict(), torch.device("cpu"), steps=T + 1)  # it holds none
    with pytest.raises(ValueError, match=r"rollout\.steps is 4, but a replay holds 2 sequences of 3 steps"):
        other.load_state_dict(buffer.state_dict(), torch.device("cpu"), steps=T + 1)


def test_chunks_that_mask_no_action_go_with_those_that_do() -> None:
    plain, masked = chunk_of(0, 1), chunk_of(2).masking(3)
    masked.action_mask[..., 2] = False
    both = concatenate([plain, masked])
    assert both.action_mask[0].tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    buffer = make(4)
    buffer.write(plain, 1)
    buffer.write(masked, 2)
    assert buffer.storage is not None and torch.equal(buffer.storage.action_mask[:, :3], both.action_mask)


def test_of_a_hundred_thousand_sequences_a_reservoir_keeps_a_uniform_sample() -> None:
    place, generator = torch.full((5000,), -1), torch.Generator().manual_seed(3)
    for start in range(0, 100_000, 100):
        rows = Reservoir().rows(zeros(100), zeros(5000), start, generator)
        for offset, row in enumerate(rows.tolist()):
            if row >= 0:
                place[row] = start + offset
    assert len(place.unique()) == 5000
    assert chi_square_p(torch.bincount(place // 1000, minlength=100)) > 0.01


def offer(writing: TaskQuota, held: torch.Tensor, task: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What `held` is after sequences of the tasks `task` were offered, and their rows."""
    rows = writing.rows(task, held, 0, generator)
    for row, new in zip(rows.tolist(), task.tolist(), strict=True):
        if row >= 0:
            held[row] = new
    return rows


def test_under_a_quota_every_task_seen_has_equally_many_rows() -> None:
    writing, held, generator = TaskQuota(), torch.full((30,), -1), torch.Generator().manual_seed(0)
    for tasks, expected in [([0], [30]), ([1], [15, 15]), ([0, 2], [10, 10, 10]), ([3], [8, 8, 7, 7]), ([1], None)]:
        for _ in range(20):
            offer(writing, held, torch.tensor(tasks).repeat(4), generator)
        counts = torch.bincount(held).sort(descending=True).values.tolist()
        assert counts == (expected or [8, 8, 7, 7])
    assert writing.offered == {0: 160, 1: 160, 2: 80, 3: 80}


def test_under_a_quota_the_sequences_of_a_task_are_kept_with_the_same_probability() -> None:
    """500 of the first task, of which the first had all rows to themselves, then 500 of two tasks in turn."""
    kept = torch.zeros(10, dtype=torch.int64)
    for seed in range(150):
        writing, held, generator = TaskQuota(), torch.full((20,), -1), torch.Generator().manual_seed(seed)
        place = torch.full((20,), -1)
        for start in range(0, 1000, 50):
            task = zeros(50) if start < 500 else torch.arange(50) % 2
            rows = offer(writing, held, task, generator)
            for offset, row in enumerate(rows.tolist()):
                if row >= 0:
                    place[row] = start + offset
        first = place[held == 0]
        assert len(first) == 10
        number = torch.where(first < 500, first, 500 + (first - 500) // 2)  # among those of the first task
        kept += torch.bincount(number // 75, minlength=10)
    assert chi_square_p(kept) > 0.01


@pytest.mark.parametrize("capacity", [6, 7])
def test_a_smaller_buffer_with_a_quota_keeps_it_and_a_larger_one_keeps_all(capacity: int) -> None:
    buffer = make(12, "task_quota")
    for start, task in ((0, 0), (20, 1), (40, 0), (60, 2)):
        chunk = chunk_of(*range(start, start + 20))
        chunk.task = torch.full_like(chunk.task, task)
        buffer.write(chunk, start)
    assert torch.bincount(torch.tensor(contents(buffer))).tolist() == [4, 4, 4]
    smaller, larger = resized(buffer, capacity, "task_quota"), resized(buffer, 20, "task_quota")
    counts = torch.bincount(torch.tensor(contents(smaller))).tolist()
    assert sum(counts) == capacity and max(counts) - min(counts) <= 1
    assert contents(larger) == contents(buffer)
    same = resized(buffer, 12, "task_quota")
    for each in (buffer, same):
        each.generator.manual_seed(1)
        each.write(chunk_of(*range(0, 400)), 100)
    assert contents(same) == contents(buffer) and torch.equal(same.task, buffer.task)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_a_power_law_draws_rows_of_age_a_in_proportion_to_its_power(exponent: float) -> None:
    """The slope of log count over log age, by least squares over ages that are drawn often enough."""
    age = torch.tensor([2**k for k in range(7)])
    rows = PowerLaw(exponent).rows(400_000, 1000 - age, zeros(7), 1000, torch.Generator().manual_seed(0))
    x, y = age.double().log(), torch.bincount(rows, minlength=7).double().log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert float(slope) == pytest.approx(-exponent, rel=0.1, abs=0.01)


def test_exponential_sampling_draws_a_row_e_times_as_seldom_after_every_scale() -> None:
    """The slope of log count over age, at ages that any float of exp(-age / scale) alone would have as nought."""
    age = 1_000_000 + torch.arange(0, 60_000, 10_000)
    rows = Exponential(20_000.0).rows(400_000, -age, zeros(6), 0, torch.Generator().manual_seed(0))
    x, y = age.double(), torch.bincount(rows, minlength=6).double().log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert float(slope) == pytest.approx(-1 / 20_000, rel=0.02)


def test_balanced_sampling_draws_every_task_alike_and_every_row_of_a_task_alike() -> None:
    task = torch.tensor([0] * 5 + [7] * 50 + [3] * 20)
    rows = TaskBalanced().rows(30_000, zeros(75), task, 0, torch.Generator().manual_seed(1))
    counts = torch.bincount(rows, minlength=75)
    assert chi_square_p(torch.stack([counts[task == k].sum() for k in (0, 3, 7)])) > 0.01
    for k in (0, 3, 7):
        assert chi_square_p(counts[task == k]) > 0.01
