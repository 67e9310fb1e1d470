"""Calls around a replay's rows, against indexing and autograd."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.agent.modules.heads import Categorical, Distribution, Gaussian
from lifelong.kernels import replay
from lifelong.kernels.loop import Each, Prepared

pytestmark = pytest.mark.skipif(not replay.available(torch.zeros(1)), reason="no compiler")
T, B, C, R = 5, 4, 9, 6


def run(*calls: Any) -> None:
    Prepared(calls, torch.float32).run()


@pytest.mark.parametrize("field", [torch.rand(T, C), torch.rand(T, C, 3), torch.rand(T, C) > 0.5, torch.arange(T * C)])
def test_rows_are_taken_and_put_as_by_an_index(field: Tensor) -> None:
    stored = field.view(T, C, *field.shape[2:])
    index = torch.tensor([[3, 0, 3, 8, 1, 5]])
    wide = stored.new_zeros(T, R, 2, *stored.shape[2:])  # columns of something wider
    run(replay.take_call(Each(index), stored, wide[:, :, 1], 1))
    assert torch.equal(wide[:, :, 1], stored[:, index[0]])
    assert not wide[:, :, 0].any()
    wanted, rows = stored.clone(), torch.tensor([[7, -1, 2, 4]])
    new = stored[:, :B].flip(0)
    wanted[:, [7, 2, 4]] = new[:, [0, 2, 3]]
    run(replay.put_call(Each(rows), new, stored, 1))
    assert torch.equal(stored, wanted)
    last = stored[0].clone()
    last[[7, 2, 4]] = new[1, [0, 2, 3]]
    run(replay.put_call(Each(rows), new[1], stored[0], 0))
    assert torch.equal(stored[0], last)


def test_slots_are_those_of_truncated_steps() -> None:
    truncated, terminated = torch.zeros(2, T, B, dtype=torch.bool)
    truncated[[0, 3, 2], [0, 0, 1]] = True
    truncated[4, 2] = terminated[4, 2] = True  # that is no truncation
    final_obs = torch.rand(T, B, 2)
    step, obs = torch.full((3, C), -1), torch.full((3, C, 2), -1.0)
    rows = torch.tensor([[5, 1, 0, -1]])
    ended = (Each(x[None]) for x in (truncated, terminated, final_obs))
    run(replay.put_slots_call(Each(rows), *ended, step, obs))  # type: ignore[arg-type]
    assert step[:, [5, 1, 0]].tolist() == [[0, 2, T], [3, T, T], [T, T, T]]
    assert torch.equal(obs[:2, 5], final_obs[[0, 3], 0])
    assert torch.equal(obs[0, 1], final_obs[2, 1])
    assert (step[:, [2, 3, 4, 6, 7, 8]] == -1).all()


@pytest.mark.parametrize("kind", ["squared", "categories", "gaussians"])
def test_what_is_held_has_the_slopes_of_autograd(kind: str) -> None:
    A, count, generator = 3, 4, torch.Generator().manual_seed(0)
    box = gymnasium.spaces.Box(-np.ones(A, np.float32), np.ones(A, np.float32))
    distribution: Distribution = Gaussian(box) if kind == "gaussians" else Categorical(A)
    said = torch.randn(T, R, A, generator=generator).requires_grad_()
    spread = torch.randn(A, generator=generator).requires_grad_()
    now = torch.cat([said, spread.expand(T, R, A)], -1) if kind == "gaussians" else said
    then, value, known = (torch.randn(*shape, generator=generator) for shape in (now.shape, (T, R), (T, R)))
    value.requires_grad_()
    weight = torch.rand(T, R, generator=generator) * (torch.rand(T, R, generator=generator) > 0.3)
    over = torch.tensor([11.0])
    distance = (now - then).square().sum(-1) if kind == "squared" else distribution.kl(then, now)
    terms = [(x * weight)[:, :count].sum() for x in (distance, (value - known).square())]
    wanted = (0.3 * terms[0] + 0.2 * terms[1]) / over
    wanted.sum().backward()
    slopes = torch.zeros(T, R, A), torch.zeros(A), torch.zeros(T, R)
    means, loss, own = torch.empty(2), torch.ones(1), weight[:, :count].sum()[None]
    args = (now.detach().contiguous(), then, value.detach(), known), (weight, own, over)
    shared = slopes[1] if kind == "gaussians" else None
    run(replay.match_call(kind, count, (0.3, 0.2), *args, (slopes[0], shared, slopes[2]), means, loss))  # type: ignore[arg-type]
    torch.testing.assert_close(loss - 1, wanted.detach())
    torch.testing.assert_close(means, torch.stack(terms).detach() / own)
    for got, tensor in zip(slopes, (said, spread, value), strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if tensor.grad is None else tensor.grad)
