"""Log-probabilities and entropies of diagonal Gaussians whose standard deviations all rows share, as calls for
`kernels.loop` (CPU).

    log p(a) = -sum_i [ z_i^2 / 2 + log s_i + log(2 pi) / 2 ],   z = (a - mean) / s
    H = sum_i [ log s_i + log(2 pi e) / 2 ]
"""

from __future__ import annotations

from torch import Tensor

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Direct, Each

_OP = Op("gaussian", "lifelong.kernels.gaussian", backends=("cpu",))


def available(sample: Tensor) -> bool:
    """Whether there are calls for tensors like `sample`."""
    return _OP.compiled(sample)


def log_prob_call(
    rows: int, actions: int, params: Each | Tensor, action: Each | Tensor, log_prob: Each | Tensor, entropy: Tensor
) -> Direct:
    """Log-probability of actions [M, A] and entropy [M] of parameters [M, 2A]: means, then logarithms of deviations."""
    entry = _OP.module("cpu", entropy).LOG_PROB[entropy.dtype]
    return Direct(entry, (rows, actions, params, action, log_prob, entropy))


def log_prob_backward_call(
    rows: int,
    actions: int,
    given: tuple[Each | Tensor, Each | Tensor],
    slopes: tuple[Tensor, Tensor],
    d_mean: Tensor,
    d_log_std: Tensor,
) -> Direct:
    """From slopes of log-probability and entropy [M] to those of the means [M, A], written, and of the logarithms [A],
    to which they are added; `given` are parameters and actions."""
    entry = _OP.module("cpu", d_mean).LOG_PROB_BACKWARD[d_mean.dtype]
    return Direct(entry, (rows, actions, *given, *slopes, d_mean, d_log_std))
