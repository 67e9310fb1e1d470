"""PPO's loss, against its formula step by step in Python and against automatic differentiation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lifelong.kernels.ppo_loss import ppo_loss
from tests.kernels.support import BACKENDS, FAST_BACKENDS, assert_close

OPTIONS = {"clip": 0.2, "value_weight": 0.7, "entropy_weight": 0.03}


def problem(T: int, B: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """log_prob, entropy, value, old_log_prob, advantage, target, weight, total; ratios on both sides of the clip."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(T, B, dtype=dtype, generator=generator)

    log_prob, entropy, value = (normal().requires_grad_() for _ in range(3))
    old = log_prob.detach() + 0.3 * normal()
    old[0, 0] = log_prob.detach()[0, 0]  # a ratio of exactly 1
    weight = (torch.rand(T, B, generator=generator) < 0.8).to(dtype)
    advantage = normal()
    advantage[-1, -1] = 0.0
    return [log_prob, entropy, value, old, advantage, 2 + normal(), weight, weight.sum().clamp(min=1)]


def by_hand(tensors: list[torch.Tensor]) -> tuple[float, list[float]]:
    columns = [tensor.detach().flatten().tolist() for tensor in tensors[:7]]
    total = float(tensors[7])
    policy = value_loss = entropy_sum = kl = clipped_share = worst = 0.0
    for log_prob, entropy, value, old, advantage, target, weight in zip(*columns, strict=True):
        ratio = math.exp(log_prob - old)
        clipped = min(max(ratio, 0.8), 1.2)
        policy -= weight * min(ratio * advantage, clipped * advantage) / total
        value_loss += weight * 0.5 * (value - target) ** 2 / total
        entropy_sum += weight * entropy / total
        kl += weight * (ratio - 1 - (log_prob - old)) / total
        clipped_share += weight * (ratio != clipped) / total
        worst = max(worst, abs(ratio - 1))
    values, targets = columns[2], columns[5]
    errors = [v - t for v, t in zip(values, targets, strict=True)]

    def variance(x: list[float]) -> float:
        mean = sum(x) / len(x)
        return sum((y - mean) ** 2 for y in x) / (len(x) - 1)

    explained = 1 - variance(errors) / max(variance(targets), 1e-8)
    loss = policy + 0.7 * value_loss - 0.03 * entropy_sum
    return loss, [policy, value_loss, entropy_sum, explained, kl, clipped_share, worst]


def all_of(tensors: list[torch.Tensor], backend: str) -> tuple[torch.Tensor, ...]:
    """Loss, statistics and the three gradients."""
    loss, statistics = ppo_loss(*tensors, **OPTIONS, backend=backend)  # type: ignore[arg-type]
    return (loss, *statistics, *torch.autograd.grad(3 * loss, tensors[:3]))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("T", "B"), [(1, 2), (3, 5), (32, 70)])
def test_loss_and_statistics_are_the_formulas(backend: str, T: int, B: int) -> None:
    tensors = problem(T, B)
    loss, statistics = ppo_loss(*tensors, **OPTIONS, backend=backend)  # type: ignore[arg-type]
    expected_loss, expected = by_hand(tensors)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    assert [float(x) for x in statistics] == pytest.approx(expected, rel=1e-10)
    assert not any(x.requires_grad for x in statistics)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equal_to_the_reference_with_its_gradients(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    tensors = problem(17, 33, dtype)
    for got, expected in zip(all_of(tensors, backend), all_of(tensors, "reference"), strict=True):
        assert_close(got, expected, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    tensors = problem(3, 4)
    tensors[3] = tensors[3] + 1e-3  # away from the corner at a ratio of 1 plus clip

    def loss(*policy: Any) -> torch.Tensor:
        return ppo_loss(*policy, *tensors[3:], **OPTIONS, backend=backend)[0]  # type: ignore[arg-type]

    torch.autograd.gradcheck(loss, tensors[:3])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_a_clipped_ratio_pulls_no_more_and_one_that_hurts_always_does(backend: str) -> None:
    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    log_prob = ratio.log().requires_grad_()
    zeros, ones = torch.zeros(4), torch.ones(4)
    loss, statistics = ppo_loss(
        log_prob, zeros, zeros, zeros, advantage, zeros, ones, torch.tensor(4.0), **OPTIONS, backend=backend
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1.5, -0.5, 0.0]) / 4)
    assert float(statistics.clip_fraction) == 1.0


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_slices_are_read_as_what_they_are(backend: str) -> None:
    tensors = [x.detach() for x in problem(6, 8)]
    loss, _ = ppo_loss(*[x[:, ::2] for x in tensors[:7]], tensors[7], **OPTIONS, backend=backend)  # type: ignore[arg-type]
    copies = [x[:, ::2].contiguous() for x in tensors[:7]]
    expected, _ = ppo_loss(*copies, tensors[7], **OPTIONS, backend="reference")  # type: ignore[arg-type]
    assert_close(loss, expected, 1e-13)


def test_wrong_shape_is_one_sentence() -> None:
    tensors = problem(3, 4)
    with pytest.raises(ValueError, match="ppo_loss: advantage must have shape"):
        ppo_loss(*tensors[:4], tensors[4][1:], *tensors[5:], **OPTIONS)  # type: ignore[arg-type]
