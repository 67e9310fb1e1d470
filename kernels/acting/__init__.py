"""What surrounds the cell in one step of acting, as calls for `kernels.loop`: its inputs, the heads, the draw.

Tensors with a row a step are [T, B, ...]; columns of wider rows are views of them, whose last stride is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.kernels.arguments import zeros
from lifelong.kernels.dense import Dense
from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Call, Calls, Each
from lifelong.kernels.recurrence import Recurrence

_OP = Op("acting", "lifelong.kernels.acting", backends=("cpu",))


def available(sample: Tensor) -> bool:
    """Whether these calls can be compiled for tensors like `sample`."""
    return _OP.compiled(sample)


def place(from_TBn: Tensor, to_TBn: Tensor) -> Call:
    """Copies rows."""
    cpu, (_, B, n) = _OP.module("cpu", to_TBn), from_TBn.shape
    return Call(cpu.PLACE, (B, n, from_TBn.stride(1), to_TBn.stride(1)), (Each(from_TBn), Each(to_TBn)))


def place_rows(from_Mn: Tensor, to_Mn: Tensor) -> Call:
    """Copies rows that are the same at every step."""
    cpu, (M, n) = _OP.module("cpu", to_Mn), from_Mn.shape
    return Call(cpu.PLACE, (M, n, from_Mn.stride(0), to_Mn.stride(0)), (from_Mn, to_Mn))


def one_hot(action_TBk: Tensor, offsets: Tensor, is_init_TB: Tensor, to_TBn: Tensor) -> Call:
    """The actions (int64, one or k of a copy), category i of part k at column offsets[k] + i; zeros where `is_init`."""
    cpu, (_, B, n) = _OP.module("cpu", to_TBn), to_TBn.shape
    sizes = (B, n, len(offsets), to_TBn.stride(1))
    return Call(cpu.ONE_HOT, sizes, (Each(action_TBk), offsets, Each(is_init_TB), Each(to_TBn)))


def masked(from_TBn: Tensor, is_init_TB: Tensor, to_TBn: Tensor) -> Call:
    """Copies rows; zeros where `is_init`."""
    cpu, (_, B, n) = _OP.module("cpu", to_TBn), from_TBn.shape
    return Call(cpu.MASKED, (B, n, to_TBn.stride(1)), (Each(from_TBn), Each(is_init_TB), Each(to_TBn)))


def scaled_reward(reward_TB: Tensor, scale_B: Tensor, is_init_TB: Tensor, to_TB1: Tensor | None) -> Call:
    """Multiplies rewards in place; `to` gets them as an input of the next step, zero where `is_init`."""
    cpu, (_, B) = _OP.module("cpu", reward_TB), reward_TB.shape
    shown = to_TB1 is not None
    target = (Each(to_TB1),) if to_TB1 is not None else ()
    sizes = (B, to_TB1.stride(1) if to_TB1 is not None else 0, int(shown))
    return Call(cpu.REWARD, sizes, (Each(reward_TB), scale_B, Each(is_init_TB), *target))


def heads(
    read_TBR: Tensor,
    task_B: Tensor,
    mask_BA: Tensor,
    log_std: Tensor | None,
    counts: tuple[int, int],
    none: float,
    policy_TBP: Tensor,
    value_TB: Tensor,
) -> Call:
    """Parameters of the actions and values from the read-out of all heads, each copy's by its task.

    Args:
        read_TBR: for every head its logits or means; then the values.
        task_B: int64.
        mask_BA: what can be done; [B, 0] if everything can.
        log_std: [heads, A] of Gaussians, which follows the means.
        counts: of heads and of values.
        none: the logit of what cannot be done.
        policy_TBP, value_TB: what is written.
    """
    cpu, (many, values) = _OP.module("cpu", read_TBR), counts
    P = (read_TBR.shape[-1] - values) // many
    sizes = (read_TBR.shape[1], P, many, values, int(mask_BA.shape[-1] > 0), int(log_std is not None))
    spread = zeros(1, read_TBR.dtype) if log_std is None else log_std
    arguments = (Each(read_TBR), task_B, mask_BA, read_TBR.new_tensor([none]), spread, Each(policy_TBP), Each(value_TB))
    return Call(cpu.HEADS, sizes, arguments)


def mode(logits_TBA: Tensor, action_TB: Tensor) -> Call:
    """The most likely actions."""
    cpu, (_, B, A) = _OP.module("cpu", logits_TBA), logits_TBA.shape
    return Call(cpu.MODE, (B, A, logits_TBA.stride(1)), (Each(logits_TBA), Each(action_TB)))


def gaussian(
    params_TBP: Tensor,
    noise_TBA: Tensor | None,
    bounds_6A: Tensor,
    action_TBA: Tensor,
    clipped_TBA: Tensor,
    given_TBA: Tensor,
) -> Call:
    """Draws mean + exp(log std) noise, or takes the mean without noise.

    `bounds_6A` has low, high, then middle and half of the environment's own range and its low and high; `given` are the
    actions there, the tensor `clipped` itself if they are the same.
    """
    cpu, (_, B, A) = _OP.module("cpu", params_TBP), action_TBA.shape
    sizes = (B, A, int(given_TBA is not clipped_TBA))
    noise = None if noise_TBA is None else Each(noise_TBA)
    outputs = (Each(action_TBA), Each(clipped_TBA), Each(given_TBA))
    return Call(cpu.GAUSSIAN, sizes, (Each(params_TBP), noise, bounds_6A, *outputs))


def recurrence(step: Recurrence, u_BM: Tensor, v_KN: Tensor, state_TBS: Tensor, is_init_TB: Tensor) -> Calls:
    """A step of a compiled recurrence from the drives u, the same buffer at every step, and row t of the state to row
    t + 1. Weights that the function reads besides its arguments are read now."""
    cpu, acting, N = _OP.module("cpu", u_BM), step.acting(u_BM), v_KN.shape[1]
    assert acting is not None
    v, w = step.weights(v_KN).detach().contiguous(), u_BM.new_empty(max(1, acting.hoisted) * N)
    arguments = (acting.act, u_BM, v, w, Each(state_TBS), Each(is_init_TB), zeros(N, u_BM.dtype), Each(state_TBS[1:]))
    pack = Call(cpu.PREPARE, (N,), (acting.prepare, v, w))
    return Calls([pack], [Call(cpu.RECURRENCE, (len(u_BM), N), arguments)])


def read_out(y_TBH: Tensor, weight_PH: Tensor, bias_P: Tensor) -> tuple[Calls, Tensor]:
    """A linear layer on row t of a cell's output, and where it goes, [T, B, P]."""
    layer = Dense(weight_PH, bias_P, rows=y_TBH.shape[1])
    read_TBP = y_TBH.new_empty(*y_TBH.shape[:2], len(weight_PH))
    return Calls([*layer.pack(backward=False)], [layer.forward(Each(y_TBH), Each(read_TBP))]), read_TBP


def previous_offsets(counts: list[int]) -> Tensor:
    """Where each part of a multi-categorical action begins, one-hot side by side."""
    ends = torch.tensor(counts).cumsum(0)
    return ends - torch.tensor(counts)
