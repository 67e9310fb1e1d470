"""Clipping of the gradients' norm, and a step of Adam, AdamW or plain gradient descent, over all parameters in one
compiled call each (CPU).

As `torch.nn.utils.clip_grad_norm_`, `torch.optim.Adam` (Kingma & Ba 2015, algorithm 1) and `AdamW` (Loshchilov & Hutter
2019, algorithm 2) do it; torch takes some ten microseconds a parameter tensor, whatever its size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Direct, Each, Held, loop

_OP = Op("adam", "lifelong.kernels.adam", backends=("cpu",))


def available(tensors: Sequence[Tensor]) -> bool:
    """Whether the calls can be made with these tensors: all of one type, on a CPU, each in one piece."""
    first = tensors[0]
    alike = all(t.dtype == first.dtype and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
    return alike and first.dtype in (torch.float32, torch.float64) and _OP.compiled(first)


def clip(grads: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients so that their common norm is at most `max_norm`; returns what it was before, a scalar."""
    norm = grads[0].new_empty(())
    sizes, pointers = _sizes(grads), _addresses(grads)
    _OP.module("cpu", norm).CLIP[norm.dtype](len(grads), max_norm, sizes, pointers, norm.data_ptr())
    return norm


class Adam(NamedTuple):
    """Numbers of a step; weight decay is added to the gradients, or taken off the weights if `decoupled` (AdamW)."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool


class Descent(NamedTuple):
    """Numbers of plain gradient descent; weight decay is added to the gradients."""

    lr: float
    weight_decay: float


class Tensors(NamedTuple):
    """What a step reads and writes; state as torch has it: exp_avg, exp_avg_sq and step (a float32 scalar)."""

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    means: Sequence[Tensor]
    squares: Sequence[Tensor]
    steps: Sequence[Tensor]


def step(tensors: Tensors, numbers: Adam) -> None:
    """A step in place."""
    loop(1, [step_call(tensors, numbers)], tensors.params[0].dtype)


def clip_call(flat: Tensor, max_norm: float, norm: Each) -> Direct:
    """`clip` of gradients that lie in one piece, as a call for `kernels.loop`; the norm goes to `norm` [1]."""
    sizes, pointers = _sizes([flat]), _addresses([flat])
    entry = _OP.module("cpu", flat).CLIP[flat.dtype]
    return Direct(entry, (1, max_norm, Held(sizes), Held(pointers), norm))


def step_call(tensors: Tensors, numbers: Adam, watched: Each | None = None) -> Direct:
    """`step` as a call for `kernels.loop`; nothing is done where one of the numbers `watched` is not finite."""
    sample = tensors.params[0]
    count = 0 if watched is None else watched.rows[0].numel()
    sizes, addresses = Held(_sizes(tensors.params)), [Held(_addresses(each)) for each in tensors]
    entry = _OP.module("cpu", sample).ADAM[sample.dtype]
    return Direct(entry, (len(tensors.params), int(numbers.decoupled), count, *numbers[:5], watched, sizes, *addresses))


def descent_call(
    params: Sequence[Tensor], grads: Sequence[Tensor], numbers: Descent, watched: Each | None = None
) -> Direct:
    """A step of gradient descent as a call for `kernels.loop`; nothing is done where one of the numbers `watched` is
    not finite."""
    sample, count = params[0], 0 if watched is None else watched.rows[0].numel()
    addresses = [Held(_addresses(each)) for each in (params, grads)]
    entry = _OP.module("cpu", sample).DESCEND[sample.dtype]
    return Direct(entry, (len(params), count, *numbers, watched, Held(_sizes(params)), *addresses))


def _sizes(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_int64 * len(tensors))(*[tensor.numel() for tensor in tensors])


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
