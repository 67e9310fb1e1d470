"""Clipping of the gradients' norm, and a step of Adam or AdamW, over all parameters in one compiled call each (CPU).

As `torch.nn.utils.clip_grad_norm_`, `torch.optim.Adam` (Kingma & Ba 2015, algorithm 1) and `AdamW` (Loshchilov & Hutter
2019, algorithm 2) do it; torch takes some ten microseconds a parameter tensor, whatever its size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Direct, Each, Held

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


def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """A step in place, with the state as torch has it: exp_avg, exp_avg_sq and step (a float32 scalar) of each.

    `weight_decay` is added to the gradients, or taken off the weights if `decoupled` (AdamW).
    """
    tensors = [_addresses(each) for each in (params, grads, means, squares, steps)]
    numbers = lr, *betas, eps, weight_decay
    sizes, dtype = _sizes(params), params[0].dtype
    _OP.module("cpu", params[0]).ADAM[dtype](len(params), decoupled, *numbers, sizes, *tensors)


def clip_call(flat: Tensor, max_norm: float, norm: Each) -> Direct:
    """`clip` of gradients that lie in one piece, as a call for `kernels.loop`; the norm goes to `norm` [1]."""
    sizes, pointers = _sizes([flat]), _addresses([flat])
    entry = _OP.module("cpu", flat).CLIP[flat.dtype]
    return Direct(entry, (1, max_norm, Held(sizes), Held(pointers), norm))


def step_call(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Direct:
    """`step` as a call for `kernels.loop`."""
    tensors = [Held(_addresses(each)) for each in (params, grads, means, squares, steps)]
    numbers = lr, *betas, eps, weight_decay
    entry = _OP.module("cpu", params[0]).ADAM[params[0].dtype]
    return Direct(entry, (len(params), int(decoupled), *numbers, Held(_sizes(params)), *tensors))


def _sizes(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_int64 * len(tensors))(*[tensor.numel() for tensor in tensors])


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
