"""The loss of predicted categories as a call for `kernels.loop` (CPU): cross-entropy, and how many were right."""

from __future__ import annotations

from torch import Tensor

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Direct, Each

_OP = Op("prediction", "lifelong.kernels.prediction", backends=("cpu",))


def available(sample: Tensor) -> bool:
    """Whether there are calls for tensors like `sample`."""
    return _OP.compiled(sample)


def prediction_call(
    said: tuple[Tensor | Each, Tensor | Each, Tensor | Each],
    counted: tuple[Tensor, Tensor],
    d_log_prob: Tensor,
    actions: int,
    outcome: tuple[Each, Each],
    *,
    add: bool,
) -> Direct:
    """Cross-entropy over M steps.

    Args:
        said: logits [M, A], what was to be predicted [M] (int64) and its log-probability [M].
        counted: weight [M] and what is divided by [1].
        d_log_prob: the slope [M], written.
        actions: A.
        outcome: accuracy and error [2], and the loss [1].
        add: whether these are those of other steps already, and are added to.
    """
    entry = _OP.module("cpu", d_log_prob).PREDICTION[d_log_prob.dtype]
    return Direct(entry, (d_log_prob.numel(), actions, int(add), *said, *counted, d_log_prob, *outcome))
