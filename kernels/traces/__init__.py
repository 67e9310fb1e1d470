"""A streaming actor-critic's error, score and eligibility trace for one copy, as calls for `kernels.loop` (CPU).

    delta = r + gamma v' - v        z = gamma lambda z + grad [w v + log pi(a) + e sign(delta) H]

Sutton & Barto 2018, section 13.6; the sign of delta in the entropy's term and the bound of the step (ObGD) are those of
Elsayed, Vasan & Mahmood 2024, arXiv 2410.14606, algorithms 3 and 4.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Direct, Each, Held

_OP = Op("traces", "lifelong.kernels.traces", backends=("cpu",))


class Bound(NamedTuple):
    """How far a step may go: 1 / max(1, lr kappa max(|delta|, 1) |z|_1) of it."""

    lr: float
    kappa: float


def slopes_call(
    weights: tuple[float, float, float], inputs: Sequence[Tensor | Each], outputs: Sequence[Tensor | Each]
) -> Direct:
    """The error of one step and the slopes of its score.

    Args:
        weights: gamma, of the value, of the entropy.
        inputs: reward, value, value after the step, value of an episode's last observation, terminated, truncated,
            entropy, one number each.
        outputs: delta, slopes by log-probability, entropy and value, the loss, [|delta|, value, entropy].
    """
    sample = outputs[0]
    assert isinstance(sample, Tensor)
    return Direct(_OP.module("cpu", sample).SLOPES[sample.dtype], (*weights, *inputs, *outputs))


def trace_call(
    decay: float, bound: Bound | None, delta: Tensor, is_init: Each, traces: Sequence[Tensor], grads: Sequence[Tensor]
) -> Direct:
    """The trace with the gradients of the score added; these become those of a loss whose descent is the step."""
    lr, kappa = bound or (0.0, 0.0)
    sizes = Held((ctypes.c_int64 * len(grads))(*[grad.numel() for grad in grads]))
    addresses = [Held((ctypes.c_void_p * len(each))(*[x.data_ptr() for x in each])) for each in (traces, grads)]
    entry = _OP.module("cpu", delta).TRACE[delta.dtype]
    return Direct(entry, (len(grads), int(bound is not None), decay, lr, kappa, delta, is_init, sizes, *addresses))
