"""GAE and V-trace, compiled (`cpu.c`)."""

from __future__ import annotations

import torch

from lifelong.kernels import build
from lifelong.kernels.loop import Direct, Each

_GAE = build.function("lifelong.kernels.advantages", "gae", "iiidd" + "p" * 8)
_VTRACE = build.function("lifelong.kernels.advantages", "vtrace", "iiiddddd" + "p" * 9)


def gae(tensors: tuple[torch.Tensor, ...], gamma: float, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantage_TB, return_TB) of (reward, value, bootstrap, terminated, truncated, final_value)."""
    inputs = [tensor.contiguous() for tensor in tensors]
    T, B = inputs[0].shape
    advantage, returns = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    pointers = [tensor.data_ptr() for tensor in (*inputs, advantage, returns)]
    _GAE[advantage.dtype](T, B, torch.get_num_threads(), gamma, lam, *pointers)
    return advantage, returns


def vtrace(
    tensors: tuple[torch.Tensor, ...], gamma: float, lam: float, rho_bar: float, c_bar: float, mix: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(vs_TB, advantage_TB) of (log_ratio, reward, value, bootstrap, terminated, truncated, final_value)."""
    inputs = [tensor.contiguous() for tensor in tensors]
    T, B = inputs[0].shape
    target, advantage = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    pointers = [tensor.data_ptr() for tensor in (*inputs, target, advantage)]
    _VTRACE[target.dtype](T, B, torch.get_num_threads(), gamma, lam, rho_bar, c_bar, mix, *pointers)
    return target, advantage


def vtrace_call(steps: int, copies: int, numbers: tuple[float, ...], *tensors: torch.Tensor | Each) -> Direct:
    """`vtrace` as a call for `kernels.loop`: gamma, lam, rho_bar, c_bar, mix, then its tensors and its outputs."""
    like = next(tensor for tensor in tensors if isinstance(tensor, torch.Tensor))
    return Direct(_VTRACE[like.dtype], (steps, copies, torch.get_num_threads(), *numbers, *tensors))


def gae_call(steps: int, copies: int, numbers: tuple[float, float], *tensors: torch.Tensor | Each) -> Direct:
    """`gae` as a call for `kernels.loop`: gamma and lam, then its tensors and its outputs."""
    like = next(tensor for tensor in tensors if isinstance(tensor, torch.Tensor))
    return Direct(_GAE[like.dtype], (steps, copies, torch.get_num_threads(), *numbers, *tensors))
