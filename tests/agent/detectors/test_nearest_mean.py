"""Contexts by their means: new ones are found, old ones recognised."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.detectors.nearest_mean import NearestMean


def chunks(centre: float, count: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 8, 4, 2, generator=draw, dtype=torch.float64) + torch.tensor([centre, -centre])


def watched(detector: NearestMean, values: Tensor) -> list[int]:
    said = []
    for chunk in values:
        detector.age += 1
        new = detector.update(chunk)
        if new:
            detector.restart()
        said.append(new)
    return said


def make(**options: int) -> NearestMean:
    detector = NearestMean(radius=1.0, gap=1, patience=2, memory=10**6, **options)  # type: ignore[arg-type]
    detector.setup(0, 4, torch.device("cpu"))
    return detector


def test_a_context_that_comes_back_is_recognised() -> None:
    detector = make()
    visits = []
    for index, centre in enumerate([0.0, 3.0, -3.0, 3.0, 0.0]):
        said = watched(detector, chunks(centre, 10, index))
        assert said == [0] * 10 if not index else said == [0, 2] + [0] * 8
        visits.append(detector.now)
    assert visits == [0, 1, 2, 1, 0] and len(detector.means) == 3


def test_the_streaming_mean_of_a_context_is_the_mean_of_all_its_chunks() -> None:
    detector, values = make(), chunks(0.5, 50, 7)
    watched(detector, values)
    torch.testing.assert_close(detector.means[0], values.mean((0, 1, 2)), atol=1e-12, rtol=0)


def test_where_there_is_no_room_the_context_seen_longest_ago_goes() -> None:
    detector = make(contexts=2)
    for index, centre in enumerate([0.0, 5.0, 10.0]):
        watched(detector, chunks(centre, 10, index))
    assert len(detector.means) == 2 and detector.now == 0
    assert [round(float(mean[0])) for mean in detector.means] == [10, 5]
