"""Write policies that balance kinds: classes that are targets, regions of what was observed."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.chunk import Chunk
from lifelong.replay.regions import Regions, described
from lifelong.replay.sampling import Uniform
from lifelong.replay.writing import WRITING, ClassQuota, NoveltyQuota
from tests.replay.test_buffer import T, chi_square_p, chunk_of


def seeing(obs_ND: Tensor) -> Chunk:
    """Sequences that observe one thing at all their steps; their number is their place."""
    count = len(obs_ND)
    return replace(chunk_of(*range(count)), obs=obs_ND.expand(T, *obs_ND.shape))


def make(capacity: int, writing: str, seed: int = 0) -> SequenceReplay:
    return SequenceReplay(capacity, WRITING[writing](), Uniform(), seed)


def mixture(count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Observations of two places that are far apart, of the second with probability `share`; and which it is."""
    second = torch.rand(count, generator=generator) < share
    noise = torch.randn(count, 4, generator=generator)
    return noise + 40.0 * second.unsqueeze(1), second


@pytest.mark.parametrize("most", [3, 8])
@pytest.mark.parametrize("order", ["random", "outwards"])
def test_no_point_is_farther_from_its_centre_than_the_doubling_algorithm_promises(most: int, order: str) -> None:
    """Eight times the best radius of k centres, which is at most that of Gonzalez 1985 (farthest first)."""
    points = torch.randn(400, 3, generator=torch.Generator().manual_seed(most), dtype=torch.float64)
    points = points * torch.linspace(0, 3, 400, dtype=torch.float64).exp().unsqueeze(1)
    if order == "random":
        points = points[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    regions = Regions(most)
    for some in points.split(7):
        regions.add(some)
    named = regions.now(torch.cat([regions.add(points)]))
    centre = {int(name): place for name, place in zip(regions.names, regions.centres, strict=True)}
    far = torch.stack([(p - centre[int(name)]).norm() for p, name in zip(points, named, strict=True)])
    chosen = [0]
    for _ in range(most - 1):
        chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
    best = float(torch.cdist(points, points[chosen]).amin(1).max())
    assert len(regions.names) <= most and float(far.max()) <= 8 * best


def test_what_is_seen_seldom_gets_as_many_rows_as_what_is_seen_all_the_time_without_a_task() -> None:
    generator, shares = torch.Generator().manual_seed(0), {}
    for writing in ("reservoir", "novelty_quota"):
        buffer = SequenceReplay(100, WRITING[writing](*((2,) if writing == "novelty_quota" else ())), Uniform(), 1)
        for step in range(100):
            obs, _ = mixture(20, 0.04, generator)
            buffer.write(seeing(obs), step)
        assert buffer.storage is not None and buffer.size == 100
        shares[writing] = float((buffer.storage.obs[0, :, 0] > 20).float().mean())
    assert shares["reservoir"] < 0.12
    assert shares["novelty_quota"] == pytest.approx(0.5, abs=0.02)


def test_within_a_region_every_sequence_is_kept_with_the_same_probability() -> None:
    kept = torch.zeros(8, dtype=torch.int64)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        buffer = SequenceReplay(40, NoveltyQuota(2), Uniform(), seed)
        for step in range(16):
            obs, _ = mixture(25, 0.2, generator)
            obs[:2] = torch.tensor([[0.0], [40.0]])  # both are known from the beginning
            buffer.write(seeing(obs), step)
        assert buffer.storage is not None
        first = buffer.storage.obs[0, :, 0] < 20
        kept += torch.bincount(buffer.stamp[first] // 2, minlength=8)
    assert int(kept.sum()) == pytest.approx(40 * 20, abs=40) and chi_square_p(kept) > 0.01


def test_regions_that_become_one_share_their_rows() -> None:
    writing = NoveltyQuota(2)
    buffer = SequenceReplay(30, writing, Uniform(), 0)
    near = torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0]])
    for step in range(20):
        buffer.write(seeing(near), step)
    assert torch.bincount(buffer.kind).tolist() == [15, 15]
    for step in range(20):
        buffer.write(seeing(torch.full((1, 4), 100.0)), 20 + step)
    now = writing.regions.now(buffer.kind)
    assert len(writing.regions.names) == 2 and torch.bincount(now).sort().values[-2:].tolist() == [15, 15]
    assert sorted(writing.offered.values()) == [20, 40]


def classes(*numbers: int) -> Chunk:
    """Sequences with a class as target at their second step; none where it is negative."""
    n = torch.tensor(numbers)
    mask = torch.zeros(T, len(n), dtype=torch.bool)
    mask[1] = n >= 0
    return replace(chunk_of(*range(len(n))), target=(n.clamp(min=0) + 7 * ~mask).long(), target_mask=mask)


def test_under_a_class_quota_every_class_has_equally_many_rows() -> None:
    buffer, generator = make(40, "class_quota"), torch.Generator().manual_seed(0)
    chance = torch.tensor([0.85, 0.1, 0.03, 0.02])
    for step in range(60):
        drawn = torch.multinomial(chance, 20, replacement=True, generator=generator) - 1
        buffer.write(classes(*drawn.tolist()), step)
    assert buffer.storage is not None
    asked, target = buffer.storage.target_mask[1], buffer.storage.target[1]
    assert torch.bincount(target[asked]).tolist() == [10, 10, 10] and int((~asked).sum()) == 10


def test_the_last_class_of_a_sequence_counts() -> None:
    chunk = classes(0, 1, 2)
    chunk.target_mask[2, 0] = True
    assert ClassQuota().kinds(chunk).tolist() == [int(chunk.target[2, 0]), 1, 2]
    assert ClassQuota().kinds(classes(-1, 3)).tolist() == [ClassQuota.NOTHING, 3]


@pytest.mark.parametrize("writing", ["class_quota", "novelty_quota"])
def test_it_goes_through_a_file_and_goes_on_alike(writing: str) -> None:
    generator = torch.Generator().manual_seed(0)
    chunks = [
        replace(classes(*(torch.arange(6) * step % 4).tolist()), obs=seeing(mixture(6, 0.3, generator)[0]).obs)
        for step in range(40)
    ]
    buffer = make(12, writing)
    for step, chunk in enumerate(chunks[:20]):
        buffer.write(chunk, step)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    other = make(12, writing, seed=99)
    other.load_state_dict(torch.load(file, weights_only=True), torch.device("cpu"))
    for step, chunk in enumerate(chunks[20:]):
        buffer.write(chunk, step)
        other.write(chunk, step)
    assert buffer.storage is not None and other.storage is not None
    assert torch.equal(buffer.storage.obs, other.storage.obs) and torch.equal(buffer.kind, other.kind)


@pytest.mark.parametrize("writing", ["class_quota", "novelty_quota"])
def test_it_takes_over_what_a_reservoir_has_kept(writing: str) -> None:
    generator = torch.Generator().manual_seed(0)
    old = make(30, "reservoir")
    obs, second = mixture(300, 0.1, generator)
    chunk = replace(classes(*second.long().tolist()), obs=seeing(obs).obs)
    old.write(chunk, 1)
    new = make(30, writing)
    new.load_state_dict(old.state_dict(), torch.device("cpu"))
    assert old.storage is not None and new.storage is not None
    assert torch.equal(new.storage.obs, old.storage.obs)
    if writing == "class_quota":
        assert torch.equal(new.kind, new.storage.target[1].long())
        new.write(chunk, 2)
        assert torch.bincount(new.kind).tolist() == [15, 15]
    else:
        apart = new.storage.obs[0, :, 0] > 20
        kinds = [set(new.kind[which].tolist()) for which in (apart, ~apart)]
        assert all(kinds) and not kinds[0] & kinds[1]


def test_long_observations_keep_their_distances_and_codes_are_no_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(6, 3, 20, 20, generator=generator)
    exact = torch.pdist(pictures.flatten(1).double())
    seen = described(seeing(pictures))
    torch.testing.assert_close(torch.pdist(seen), exact, rtol=0.35, atol=0.0)
    whole = replace(seeing(torch.zeros(3, 1)), obs=torch.tensor([0, 1, 30]).expand(T, 3))
    far = torch.pdist(described(whole))
    assert float(far.max() / far.min()) < 2


def test_no_regions_are_refused() -> None:
    with pytest.raises(ValueError, match="regions is 0"):
        NoveltyQuota(0)
