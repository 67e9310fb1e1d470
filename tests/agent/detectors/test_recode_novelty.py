"""RECODE's memory: nothing of its counts is lost, and they follow how often things were seen."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from lifelong.agent.detectors.recode_novelty import RecodeNovelty
from lifelong.agent.modules.novelty import Recode


def make(size: int, decay: float, *, far: float = 0.2, insert: float = 0.5, dimensions: int = 2) -> Recode:
    draw = torch.Generator().manual_seed(0)
    return Recode(size, dimensions, decay, 0.01, far, insert, 5, 1e-3, draw)


def test_every_embedding_adds_one_to_the_counts_after_their_decay_whatever_becomes_of_it() -> None:
    recode, draw, total, places = make(20, 0.99), torch.Generator().manual_seed(1), 0.0, set()
    for step in range(600):
        before = recode.atoms.clone()
        recode.add((1 + step) ** 0.5 * torch.rand(2, generator=draw, dtype=torch.float64))
        total = 0.99 * total + 1.0
        assert float(recode.counts.sum()) == pytest.approx(total, abs=1e-6)
        places |= set((before != recode.atoms).any(1).nonzero().flatten().tolist())
    assert recode.used == 20 and len(places) == 20
    assert float(recode.counts.sum()) == pytest.approx(1 / (1 - 0.99), rel=0.01)  # its steady state


def test_on_a_finite_set_counts_rank_as_the_visits_do() -> None:
    draw = torch.Generator().manual_seed(2)
    side = torch.arange(5, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)[torch.randperm(25, generator=draw)]
    shares = 1.0 / torch.arange(1, 26).double()
    recode = make(40, 1.0)
    visits = torch.multinomial(shares, 4000, replacement=True, generator=draw)
    for index in visits:
        recode.add(points[index])
    seen = torch.bincount(visits, minlength=25)
    near = torch.cdist(points, recode.atoms[: recode.used]).argmin(1)
    assert len(set(near.tolist())) == 25
    assert stats.spearmanr(recode.counts[near], seen).statistic > 0.95
    novelty = recode.novelty(points)
    assert stats.spearmanr(novelty, seen).statistic < -0.95


def test_novelty_is_one_over_the_root_of_the_kernel_sum() -> None:
    recode = make(4, 1.0)
    recode.atoms[:2] = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    recode.counts[:2], recode.used, recode.scale = torch.tensor([3.0, 8.0]), 2, 0.5
    e = torch.tensor([[0.0, 0.5], [9.0, 9.0]], dtype=torch.float64)
    near = 1e-3 / (1e-3 + 0.25 / 0.5)  # the other cluster is farther than d
    expected = [1 / ((4 * near) ** 0.5 + 0.01), 1 / 0.01]
    assert recode.novelty(e).tolist() == pytest.approx(expected)


def test_a_new_context_is_a_burst_of_novelty_and_one_that_was_just_there_is_none() -> None:
    detector = RecodeNovelty(memory=10, clusters=64, gap=1)
    detector.setup(0, 4, torch.device("cpu"))
    draw = torch.Generator().manual_seed(3)

    def said(centre: float, count: int) -> list[int]:
        found = []
        for _ in range(count):
            found.append(detector.update(torch.randn(8, 4, 2, generator=draw, dtype=torch.float64) + centre))
            if found[-1]:
                detector.restart()
        return found

    assert not any(said(0.0, 40))
    assert said(30.0, 20)[:2] == [0, 2]
    assert not any(said(0.0, 20))
