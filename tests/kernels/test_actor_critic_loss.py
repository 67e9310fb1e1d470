"""The fused loss of actor-critic: value, gradients and statistics are those of its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong.kernels.actor_critic_loss import actor_critic_loss


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(7, 60, generator=generator, dtype=dtype) for _ in range(5)]
    weight = (torch.rand(7, 60, generator=generator) < 0.7).to(dtype)
    return [*(x.requires_grad_() for x in draws[:3]), *draws[3:], weight]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("through_error", [False, True])
def test_equals_the_reference(dtype: torch.dtype, through_error: bool) -> None:
    results = []
    for backend in ("reference", "cpu", "torch"):
        tensors = inputs(dtype)
        loss, statistics, error = actor_critic_loss(*tensors, tensors[-1].sum(), 0.5, 0.01, backend=backend)
        (3 * loss + (error.square().sum() if through_error else 0.0)).backward()
        results.append([loss.detach(), *statistics, error.detach(), *(x.grad for x in tensors[:3])])
    tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, wanted, **tolerance)


def test_the_derivative_is_that_of_the_value() -> None:
    tensors = inputs(torch.float64)

    def loss(*three: Tensor) -> Tensor:
        return actor_critic_loss(*three, *tensors[3:], tensors[-1].sum(), 0.5, 0.01)[0]

    assert torch.autograd.gradcheck(loss, tuple(tensors[:3]))


def test_steps_that_do_not_count_have_no_gradient() -> None:
    tensors = inputs(torch.float32)
    actor_critic_loss(*tensors, tensors[-1].sum(), 0.5, 0.01)[0].backward()
    for x in tensors[:3]:
        assert x.grad is not None
        assert not x.grad[tensors[-1] == 0].any() and x.grad.any()


def test_shapes_that_differ_are_named() -> None:
    tensors = inputs(torch.float32)
    tensors[3] = tensors[3][:-1]
    with pytest.raises(ValueError, match="actor_critic_loss: advantage"):
        actor_critic_loss(*tensors, tensors[-1].sum(), 0.5, 0.01)
