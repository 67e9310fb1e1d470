"""Compiled (`cpu.c`): one pass over the steps, and one for the variances."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.kernels import build
from lifelong.kernels.loop import Direct, Each

_LOSS = build.function("lifelong.kernels.actor_critic_loss", "actor_critic_loss", "idd" + "p" * 13)


def loss(
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    advantage: Tensor,
    target: Tensor,
    weight: Tensor,
    total: Tensor,
    value_weight: float,
    entropy_weight: float,
) -> tuple[Tensor, ...]:
    """(loss, statistics [4], error, and the loss's derivatives by log_prob, entropy and value)."""
    inputs = [x.contiguous() for x in (log_prob, entropy, value, advantage, target, weight, total)]
    outputs = [log_prob.new_empty(()), log_prob.new_empty(4), *(torch.empty_like(inputs[0]) for _ in range(4))]
    pointers = [x.data_ptr() for x in (*inputs, *outputs)]
    _LOSS[log_prob.dtype](log_prob.numel(), value_weight, entropy_weight, *pointers)
    return tuple(outputs)


def loss_call(
    count: int,
    weights: tuple[float, float | Tensor],
    inputs: tuple[Tensor | Each, ...],
    outputs: tuple[Tensor | Each, ...],
) -> Direct:
    """`loss` of `count` steps as a call for `kernels.loop`; the weights of value and entropy (or a float64 scalar
    that holds it), then tensors in order."""
    like = next(tensor for tensor in inputs if isinstance(tensor, Tensor))
    return Direct(_LOSS[like.dtype], (count, *weights, *inputs, *outputs))
