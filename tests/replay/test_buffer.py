"""Replay: what is kept, where it goes, what is drawn."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.chunk import SLOTS, Chunk, concatenate, copies_dim
from lifelong.replay.sampling import SAMPLING
from lifelong.replay.writing import WRITING, Reservoir, Ring

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
    sample, rows = buffer.sample(20)
    assert sample.copies == 20 and sample.steps == T
    expected = chunk_of(*rows.tolist())
    for name in FIELDS:
        assert torch.equal(getattr(sample, name), getattr(expected, name)), name


def test_writing_into_a_sample_does_not_change_the_buffer() -> None:
    buffer = make(6)
    buffer.write(chunk_of(*range(6)), 1)
    sample, _ = buffer.sample(6)
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


@pytest.mark.parametrize("batch", [5, 25])
def test_a_reservoir_keeps_every_sequence_ever_offered_with_the_same_probability(batch: int) -> None:
    """1,000 offered to 20 places, 300 times over: each tenth of the stream must be kept alike."""
    kept = torch.zeros(10, dtype=torch.int64)
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        place = torch.full((20,), -1)
        for start in range(0, 1000, batch):
            rows = Reservoir().rows(min(batch, 1000 - start), start, 20, generator)
            for offset, row in enumerate(rows.tolist()):
                if row >= 0:
                    place[row] = start + offset
        assert bool((place >= 0).all())
        kept += torch.bincount(place // 100, minlength=10)
    assert int(kept.sum()) == 6000
    assert chi_square_p(kept) > 0.01


def test_the_reservoir_test_would_see_a_ring() -> None:
    kept = torch.bincount((Ring().rows(1000, 0, 20, torch.Generator()) * 0 + 999) // 100, minlength=10)
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
    _, rows = buffer.sample(20_000)
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
    (first, rows), (second, others) = buffer.sample(30), other.sample(30)
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
        other.sample(1)
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
        sample, rows = buffer.sample(30)
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
