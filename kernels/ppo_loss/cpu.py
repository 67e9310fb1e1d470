"""Compiled (`cpu.c`): one pass over the steps, and one for the variances."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.loop import Direct, Each

_LOSS = build.function("lifelong.kernels.ppo_loss", "ppo_loss", "iddd" + "p" * 13)


def loss(
    log_prob: torch.Tensor,
    entropy: torch.Tensor,
    value: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    clip: float,
    value_weight: float,
    entropy_weight: float,
) -> tuple[torch.Tensor, ...]:
    """(loss, statistics [7], and the loss's derivatives by log_prob, entropy and value)."""
    tensors = (log_prob, entropy, value, old_log_prob, advantage, target, weight, total)
    inputs = [tensor.contiguous() for tensor in tensors]
    shape, dtype = log_prob.shape, log_prob.dtype
    outputs = (
        torch.empty((), dtype=dtype),
        torch.empty(7, dtype=dtype),
        *(torch.empty(shape, dtype=dtype) for _ in range(3)),
    )
    _LOSS[dtype](
        log_prob.numel(), clip, value_weight, entropy_weight, *[tensor.data_ptr() for tensor in (*inputs, *outputs)]
    )  # fmt: skip
    return outputs


def loss_call(
    count: int,
    numbers: tuple[float, float, float | torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    outputs: tuple[torch.Tensor | Each, ...],
) -> Direct:
    """`loss` as a call for `kernels.loop`; `numbers`: clip, weights of value and entropy (or what holds it)."""
    return Direct(_LOSS[inputs[0].dtype], (count, *numbers, *inputs, *outputs))
