"""Sequences in and out of a replay's rows and what is learned from them, as calls for `kernels.loop` (CPU).

A field of a chunk is [T, B, ...], in a replay [T, capacity, ...]; one that has a row a copy is [B, ...]. Its last
dimensions lie in one piece. Distances and their slopes are with the strategies that use them (`agent.strategies`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Direct, Each

_OP = Op("replay", "lifelong.kernels.replay", backends=("cpu",))
#: as in cpu.c
DISTANCES = {"squared": 0, "categories": 1, "gaussians": 2}
_BYTES = torch.float32  # functions that move bytes are the same for all types


def available(sample: Tensor) -> bool:
    """Whether there are calls for tensors like `sample`."""
    return _OP.compiled(sample)


def take_call(index: Each, rows: Tensor, to: Tensor, dim: int) -> Direct:
    """The copies `index` [n] (int64) of a replay's field, which are its dimension `dim` (0 or 1), to a field of n."""
    return Direct(_functions().TAKE[_BYTES], (*_sizes(rows, to, to, dim), index, rows, to))


def put_call(index: Each, field: Each | Tensor, rows: Tensor, dim: int) -> Direct:
    """The n copies of a field to those `index` [n] of a replay's; -1: nowhere."""
    one = field.rows[0] if isinstance(field, Each) else field
    return Direct(_functions().PUT[_BYTES], (*_sizes(one, rows, one, dim), index, field, rows))


def put_slots_call(
    index: Each, truncated: Each, terminated: Each, final_obs: Each, step_SC: Tensor, obs_SC: Tensor
) -> Direct:
    """The slots of truncated steps (see `replay.chunk`) of a chunk whose last observations are `final_obs` [T, B,
    ...]."""
    T, B = truncated.rows.shape[1:3]
    bytes_ = obs_SC[0, 0].numel() * obs_SC.element_size()
    sizes = T, B, *step_SC.shape, bytes_
    return Direct(_functions().PUT_SLOTS[_BYTES], (*sizes, index, truncated, terminated, final_obs, step_SC, obs_SC))


def one_hot_call(task_TN: Tensor, to_TNn: Tensor) -> Direct:
    """Columns that are 1 where the task is theirs, else 0."""
    places = *task_TN.shape, to_TNn.stride(0), to_TNn.stride(1), to_TNn.shape[-1]
    return Direct(_functions(to_TNn).ONE_HOT[to_TNn.dtype], (*places, task_TN, to_TNn))


def following_call(
    first: int,
    width: int,
    rewarded: bool,
    shown: int,
    seen: tuple[Tensor, ...],
    bounds: Tensor,
    to: tuple[Tensor, ...],
) -> Direct:
    """What a policy reads after the last step and after truncated steps (see `Policy.after`).

    Args:
        first: column of the cell's input after the features; there come
        width: of the action, 0 if it is not read,
        rewarded: the reward, if it is read, and
        shown: tasks one-hot.
        seen: step [S, N] of truncated steps, whether the next step resets [N], memory [T + 1, N, Z], then action,
            reward and task [T, N].
        bounds: [2, width] of actions that are numbers.
        to: memory [(1 + S) N, Z], the cell's input [(1 + S) N, D], whether the memory is reset, and task.
    """
    step, next_is_init, states, action, reward, task = seen
    (T, N), D = reward.shape, to[1].shape[-1]
    sizes = T, N, len(step), states.shape[-1], D, first, width, int(action.dtype == torch.int64), int(rewarded), shown
    entry = _functions(reward).FOLLOWING[reward.dtype]
    return Direct(entry, (*sizes, step, next_is_init, states, action, bounds, reward, task, *to))


def place_final_call(step_SN: Tensor, value: Tensor, final_TN: Tensor) -> Direct:
    """The values [S * N] of truncated steps at these; zeros elsewhere."""
    sizes = *final_TN.shape, len(step_SN)
    return Direct(_functions(value).PLACE_FINAL[value.dtype], (*sizes, step_SN, value, final_TN))


def subtract_call(a: Tensor, b: Tensor, to: Tensor) -> Direct:
    """to = a - b."""
    return Direct(_functions(to).SUBTRACT[to.dtype], (to.numel(), a, b, to))


def weigh_call(
    count: int,
    weight: Tensor | Each,
    asked: Tensor | Each | None,
    factor: Tensor,
    plain: Tensor,
    own: Tensor,
    to: Tensor,
) -> Direct:
    """plain <- weights [T, N], 0 where nothing is `asked`; own <- their sum over the first `count`
    copies, at least 1; to <- plain * factor [N]."""
    sizes = *plain.shape, count
    return Direct(_functions(to).WEIGH[to.dtype], (*sizes, weight, asked, factor, plain, own, to))


def total_call(weight: Tensor, to: Tensor) -> Direct:
    """to <- the sum of the weights, at least 1."""
    return Direct(_functions(to).TOTAL[to.dtype], (weight.numel(), weight, to))


def more_entropy_call(
    before: float, now: Tensor, entropy: Tensor, weight: Each, total: Tensor, d_entropy: Tensor, loss: Each | Tensor
) -> Direct:
    """The loss and its slopes where the entropy of some steps [M], of `total` weight with others, has the weight `now`
    (a float64 scalar) in place of the one `before`."""
    tensors = entropy, weight, total, d_entropy, loss
    return Direct(_functions(entropy).MORE_ENTROPY[entropy.dtype], (entropy.numel(), before, now, *tensors))


def match_call(
    kind: Literal["squared", "categories", "gaussians"],
    count: int,
    weights: tuple[float, float],
    said: tuple[Tensor, Tensor, Tensor, Tensor],
    counted: tuple[Tensor, Tensor, Tensor],
    slopes: tuple[Tensor, Tensor | None, Tensor],
    means: Tensor,
    loss: Each | Tensor,
) -> Direct:
    """Holds the policy to what it was: the distance of its parameters, squared or KL(then || now), and that of its
    values.

    Args:
        kind: of the distance.
        count: so many of the N copies are held.
        weights: of the distance and of the squared distance of values.
        said: parameters [T, N, P] now and then, values [T, N] now and then.
        counted: weight [T, N], its sum, and what is divided by [1].
        slopes: of the first A parameters [T, N, A], of the others, which all rows share (None: there are none), and of
            the values; all are added to.
        means: [2] of both distances.
        loss: added to.
    """
    (T, N, P), A = said[0].shape, slopes[0].shape[-1]
    sizes = T, N, count, P, A, DISTANCES[kind]
    entry = _functions(means).MATCH[means.dtype]
    return Direct(entry, (*sizes, *weights, *said, *counted, *slopes, means, loss))


def _functions(sample: Tensor | None = None) -> Any:
    return _OP.module("cpu", torch.empty(0) if sample is None else sample)


def _sizes(source: Tensor, to: Tensor, some: Tensor, dim: int) -> tuple[int, ...]:
    """Steps, copies and bytes of an item of `some`, and how far steps and copies lie apart in `source` and in `to`."""
    item = some[0, 0] if dim else some[0]
    assert source.dtype == to.dtype
    assert item.is_contiguous()
    assert (to[0, 0] if dim else to[0]).is_contiguous()
    steps, copies = some.shape[:2] if dim else (1, len(some))
    places = [each.stride(d) * each.element_size() if d >= 0 else 0 for each in (source, to) for d in (dim - 1, dim)]
    return steps, copies, item.numel() * item.element_size(), *places
