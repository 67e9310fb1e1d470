"""The loss of advantage actor-critic and what is logged of it, with the gradients of all its terms in the same pass.

    L = - mean(log pi(a|x) A) + value_weight / 2 mean((V - R)^2) - entropy_weight mean(H)

Source: Mnih et al. 2016, "Asynchronous methods for deep reinforcement learning", section 4; A and R are constants.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lifelong.kernels.dispatch import Op, check

_LOSS = Op("actor_critic_loss", "lifelong.kernels.actor_critic_loss", backends=("reference", "torch", "cpu"))


class Statistics(NamedTuple):
    """Scalars for the log, without gradient. Means are over the steps that count, as in the loss."""

    policy: Tensor  # the first term
    value: Tensor  # half the mean squared error of the value
    entropy: Tensor
    explained_variance: Tensor  # 1 - Var(target - value) / Var(target), over all steps


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, impl: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        loss, statistics, error, *slopes = impl.loss(*arguments)
        ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return loss, statistics, error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor | None, _: None, d_error: Tensor | None) -> Any:
        slopes = list(ctx.saved_tensors)
        slopes = [None] * 3 if d_loss is None else [slope * d_loss for slope in slopes]
        if d_error is not None:
            slopes[2] = d_error if slopes[2] is None else slopes[2] + d_error
        return None, *slopes, *[None] * 6


def actor_critic_loss(
    log_prob_TB: Tensor,
    entropy_TB: Tensor,
    value_TB: Tensor,
    advantage_TB: Tensor,
    target_TB: Tensor,
    weight_TB: Tensor,
    total: Tensor,
    value_weight: float,
    entropy_weight: float,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Statistics, Tensor]:
    """(loss, statistics, error V - R [T, B]) of the module docstring.

    log_prob, entropy and value are the current policy's and have gradients, and so has the error; advantage is A,
    target R; weight_TB is 0 for steps that do not count, and means divide by `total`, a scalar tensor. Raises
    ValueError for wrong shapes, dtypes or a backend that cannot run.
    """
    tensors = (log_prob_TB, entropy_TB, value_TB, advantage_TB, target_TB, weight_TB)
    names = ("log_prob", "entropy", "value", "advantage", "target", "weight")
    for name, tensor in zip(names, tensors, strict=True):
        check("actor_critic_loss", name, tensor, log_prob_TB.shape, log_prob_TB)
    impl = _LOSS.module(backend, log_prob_TB)
    arguments = (*tensors, total, value_weight, entropy_weight)
    if hasattr(impl, "differentiable_loss"):
        loss, statistics, error = impl.differentiable_loss(*arguments)
    else:
        loss, statistics, error = _Loss.apply(impl, *arguments)  # type: ignore[no-untyped-call]
    return loss, Statistics(*statistics.unbind()), error
