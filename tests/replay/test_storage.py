"""Where rows lie and in which numbers: what comes back, what it takes, what follows what."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.sampling import SAMPLING
from lifelong.replay.storage import HALVED, _mapped
from lifelong.replay.writing import WRITING
from tests.replay.test_buffer import FIELDS, chunk_of, with_truncations

PLACES = ["device", "host", "disk"]


def make(folder: Path, capacity: int = 6, writing: str = "ring", sampling: str = "uniform", **options: Any) -> Any:
    return SequenceReplay(capacity, WRITING[writing](), SAMPLING[sampling](), folder=folder, **options)


@pytest.mark.parametrize("place", PLACES)
def test_a_sequence_comes_back_whole_from_every_place(place: Any, tmp_path: Path) -> None:
    buffer = make(tmp_path, place=place)
    buffer.write(chunk_of(*range(4)), 1)
    buffer.write(chunk_of(4, 5, 6), 2)
    sample, rows = buffer.sample(20, 2)
    numbers = [6 if row == 0 else row for row in rows.tolist()]
    expected = chunk_of(*numbers)
    for name in FIELDS:
        assert torch.equal(getattr(sample, name), getattr(expected, name)), name
        assert getattr(sample, name).dtype == getattr(expected, name).dtype
    assert not list(tmp_path.iterdir())  # the files have no name, so a kill leaves nothing


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("compact", [False, True])
def test_rows_go_through_a_file_into_every_other_place(place: Any, compact: bool, tmp_path: Path) -> None:
    buffer = make(tmp_path, place=place, compact=compact)
    buffer.write(chunk_of(*range(4)), 1)
    buffer.write(with_truncations(2, 3), 2)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    for other_place in PLACES:
        for other_compact in (False, True):
            file.seek(0)
            other = make(tmp_path, place=other_place, compact=other_compact)
            other.load_state_dict(torch.load(file, weights_only=True), torch.device("cpu"))
            buffer.generator.set_state(other.generator.get_state())
            (first, rows), (second, others) = buffer.sample(30, 3), other.sample(30, 3)
            assert torch.equal(rows, others)
            for name in FIELDS:
                a, b = getattr(first, name), getattr(second, name)
                assert a.dtype == b.dtype and torch.equal(a, b), name  # small whole numbers are exact as float16, too
    other.write(chunk_of(7), 4)
    assert other.size == 6


def test_compact_keeps_three_digits_of_what_is_halved_and_all_of_the_rest(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    chunk = chunk_of(*range(6)).map(
        lambda name, x, dim: torch.randn(x.shape, generator=generator) if x.is_floating_point() else x
    )
    chunk.policy[0, 0, 0] = -1e9  # a masked action
    buffer, exact = make(tmp_path, compact=True), make(tmp_path)
    buffer.write(chunk, 1)
    exact.write(chunk, 1)
    (got, rows), (truth, _) = buffer.sample(50, 1), exact.sample(50, 1)
    for name in FIELDS:
        a, b = getattr(got, name), getattr(truth, name)
        assert a.dtype == b.dtype
        if name in HALVED and a.is_floating_point():
            inside = b.abs() < 60_000
            torch.testing.assert_close(a[inside], b[inside], rtol=2**-11, atol=1e-7)
            assert not torch.equal(a, b)
        else:
            assert torch.equal(a, b), name
    masked = got.policy[truth.policy == -1e9]
    assert len(masked) and bool((masked == -65504).all())  # finite, and its probability is still zero
    sizes = [sum(x.nbytes for x in vars(each.storage).values()) for each in (buffer, exact)]
    assert sizes[0] < 0.8 * sizes[1]
    assert rows.max() < 6


def test_bytes_are_kept_as_bytes(tmp_path: Path) -> None:
    chunk = replace(chunk_of(0, 1), obs=torch.arange(24, dtype=torch.uint8).view(3, 2, 4))
    for compact in (False, True):
        buffer = make(tmp_path, compact=compact)
        buffer.write(chunk, 1)
        assert buffer.storage.obs.dtype == torch.uint8
        sample, rows = buffer.sample(9, 1)
        assert torch.equal(sample.obs, chunk.obs[:, rows])


def test_what_came_after_a_sequence_in_its_copy_is_found_unless_it_is_gone(tmp_path: Path) -> None:
    """Chunks of two copies at steps 10, 20, 30 (and 50: one was lived through without learning) in a ring of 6."""
    buffer = make(tmp_path, linked=True)
    for step, numbers in ((10, (0, 1)), (20, (2, 3)), (30, (4, 5))):
        buffer.write(chunk_of(*numbers), step)
    rows = torch.arange(6)
    assert buffer.following(rows, 2, 10).tolist() == [2, 3, 4, 5, -1, -1]
    buffer.write(chunk_of(6, 7), 50)  # over rows 0 and 1
    assert buffer.following(rows, 2, 10).tolist() == [-1, -1, 4, 5, -1, -1]
    buffer.write(chunk_of(8, 9), 60)
    assert buffer.following(rows, 2, 10).tolist() == [2, 3, -1, -1, -1, -1]
    other = make(tmp_path, linked=True)
    other.load_state_dict(buffer.state_dict(), torch.device("cpu"))
    assert other.following(rows, 2, 10).tolist() == [2, 3, -1, -1, -1, -1]
    buffer.write(chunk_of(10, 11), 70, in_order=False)  # by environment runners
    assert buffer.following(rows, 2, 10).tolist() == [2, 3, -1, -1, -1, -1]


@pytest.mark.parametrize("compact", [False, True])
def test_a_new_start_is_written_into_its_rows_alone(compact: bool, tmp_path: Path) -> None:
    buffer = make(tmp_path, compact=compact)
    buffer.write(chunk_of(*range(6)), 1)
    before = buffer.storage.state.clone()
    distance = buffer.restart(torch.tensor([4, 1]), torch.full((2, 3), 9.0))
    assert float(distance) == pytest.approx((math.sqrt(3) * (9 - 4) + math.sqrt(3) * (9 - 1)) / 2)
    assert buffer.storage.state[4].tolist() == [9.0, 9.0, 9.0, 4.0, 4.0]
    rest = [0, 2, 3, 5]
    assert torch.equal(buffer.storage.state[rest], before[rest])


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        _mapped([10**15, 4], torch.float32, tmp_path)
    assert not list(tmp_path.iterdir())
