"""What strategies do to gradients and parameters around the optimiser's step, as calls for `kernels.loop` (CPU).

A quadratic penalty (elastic weight consolidation, L2), the path integral of synaptic intelligence, bounds on weights,
TRAC's tuners, and a bonus whose weight falls with the steps of a run: sources and equations are with the strategies
that use them (`agent.strategies`). Each goes once over all parameters.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Direct, Each, Held

_OP = Op("hooks", "lifelong.kernels.hooks", backends=("cpu",))


def available(sample: Tensor) -> bool:
    """Whether there are calls for tensors like `sample`."""
    return _OP.compiled(sample)


def set_call(sample: Tensor, value: float, out: Tensor) -> Direct:
    """out <- value, a float64 scalar; `sample` has the type of the program."""
    return Direct(_functions(sample).SET[sample.dtype], (value, out))


def count_call(sample: Tensor, by: int, step: Tensor) -> Direct:
    """step <- step + by, an int64 scalar."""
    return Direct(_functions(sample).COUNT[sample.dtype], (by, step))


def ramp_call(sample: Tensor, numbers: tuple[float, int, int, int], step: Tensor, now: Tensor, out: Tensor) -> Direct:
    """now <- weight * max(0, 1 - (step - begun) / length), and is added to `out`; both are float64 scalars.

    Args:
        sample: has the type of the program.
        numbers: weight, begun, length, every; if that is not 0, the ramp has begun at the last multiple of it above 0.
        step: an int64 scalar.
        now: written.
        out: added to.
    """
    weight, begun, length, every = numbers
    return Direct(_functions(sample).RAMP[sample.dtype], (begun, every, weight, float(length), step, now, out))


class Penalty(NamedTuple):
    """strength / 2 * sum of importance * (p - anchor)^2."""

    strength: float
    importance: Sequence[Tensor]
    anchor: Sequence[Tensor]


def penalty_call(
    held: Penalty, params: Sequence[Tensor], grads: Sequence[Tensor], penalty: Tensor, loss: Each
) -> Direct:
    """The penalty goes to `penalty` [1] and is added to `loss` [1], its gradients to `grads`."""
    arrays = map(_addresses, (params, grads, held.importance, held.anchor))
    entry = _functions(penalty).PENALTY[penalty.dtype]
    return Direct(entry, (len(params), held.strength, _sizes(params), *arrays, penalty, loss))


def path_begin_call(
    held: Penalty | None,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    slopes: Sequence[Tensor],
    before: Sequence[Tensor],
) -> Direct:
    """slopes <- grads without those of the penalty `held`; before <- params."""
    strength, *kept = held or (0.0, None, None)
    arrays = [None if each is None else _addresses(each) for each in kept]
    sample = params[0]
    entry, many = _functions(sample).PATH_BEGIN[sample.dtype], len(params)
    rest = _sizes(params), _addresses(params), _addresses(grads), *arrays, _addresses(slopes), _addresses(before)
    return Direct(entry, (many, int(held is not None), strength, *rest))


def path_end_call(
    params: Sequence[Tensor],
    slopes: Sequence[Tensor],
    before: Sequence[Tensor],
    omegas: Sequence[Tensor],
    watched: Each,
) -> Direct:
    """omegas <- omegas - slopes * (params - before)."""
    sample = params[0]
    arrays = map(_addresses, (params, slopes, before, omegas))
    entry = _functions(sample).PATH_END[sample.dtype]
    return Direct(entry, (len(params), watched.rows[0].numel(), watched, _sizes(params), *arrays))


def bound_call(params: Sequence[Tensor], bounds: Sequence[float], watched: Each) -> Direct:
    """Every parameter within -bound and bound."""
    sample, numbers = params[0], Held((ctypes.c_double * len(bounds))(*bounds))
    entry = _functions(sample).BOUND[sample.dtype]
    return Direct(entry, (len(params), watched.rows[0].numel(), watched, _sizes(params), numbers, _addresses(params)))


class Tuners(NamedTuple):
    """TRAC's: numbers, and tensors in float64, of which `variance`, `sigma` [6] and `scale` [] are written."""

    eps: float
    unit: float
    largest: float
    betas: Tensor
    variance: Tensor
    sigma: Tensor
    scale: Tensor


def trac_begin_call(
    params: Sequence[Tensor], grads: Sequence[Tensor], paths: Sequence[Tensor], before: Sequence[Tensor], along: Tensor
) -> Direct:
    """before <- params; along <- the product of gradients and paths, a float64 scalar."""
    sample = params[0]
    arrays = map(_addresses, (params, grads, paths, before))
    return Direct(_functions(sample).TRAC_BEGIN[sample.dtype], (len(params), _sizes(params), *arrays, along))


def trac_end_call(
    tuners: Tuners,
    params: Sequence[Tensor],
    paths: Sequence[Tensor],
    before: Sequence[Tensor],
    along: Tensor,
    watched: Each,
) -> Direct:
    """The tuners see `along`; the step goes to the paths, and parameters to where these and the new scale put them."""
    sample, (eps, unit, largest, *tensors) = params[0], tuners
    arrays = map(_addresses, (params, paths, before))
    numbers = len(params), watched.rows[0].numel(), len(tuners.betas), eps, unit, largest
    entry = _functions(sample).TRAC_END[sample.dtype]
    return Direct(entry, (*numbers, watched, *tensors, along, _sizes(params), *arrays))


def _functions(sample: Tensor) -> Any:
    return _OP.module("cpu", sample)


def _sizes(tensors: Sequence[Tensor]) -> Held:
    return Held((ctypes.c_int64 * len(tensors))(*[tensor.numel() for tensor in tensors]))


def _addresses(tensors: Sequence[Tensor]) -> Held:
    return Held((ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors]), tensors)
