"""Cells that attend to a ring of past inputs; what they share."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.envs.options import Range

#: how many inputs are remembered
Slots = Annotated[int, Range(1, 10_000)]


class RingCell(Cell):
    """A cell whose state ends with the last M inputs: [.. | are there inputs i = 1..M | they, feature by feature].

    Args:
        input_size: D.
        state_size: numbers of the state in front of the ring.
        output_size: H.
        slots: M.
    """

    units_apart: ClassVar[bool] = False

    def __init__(self, input_size: int, state_size: int, output_size: int, slots: int) -> None:
        super().__init__(input_size, state_size + slots * (1 + input_size), output_size)
        self.unit_state, self.slots = state_size, slots

    def remembered(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(there [..., M] bool, inputs [..., M, D], ring)` with x in front and the oldest input gone."""
        there, inputs = state[..., self.unit_state :].split((self.slots, self.slots * self.input_size), -1)
        there = torch.cat([torch.ones_like(there[..., :1]), there[..., :-1]], -1)
        inputs = torch.cat([x.unsqueeze(-1), inputs.unflatten(-1, (self.input_size, -1))[..., :-1]], -1)
        return there > 0.5, inputs.transpose(-1, -2), torch.cat([there, inputs.flatten(-2)], -1)

    def read_rows(self, inputs: Tensor) -> Tensor:
        """The remembered inputs, each with its place in the ring as one-hot, one below the other [*, D + M]."""
        age = torch.eye(self.slots).to(inputs).expand(*inputs.shape[:-2], -1, -1)
        return torch.cat([inputs, age], -1).flatten(0, -2)


def attend(query: Tensor, key: Tensor, value: Tensor, there: Tensor | None = None) -> Tensor:
    """sum_i p_i value_i with p = softmax(query key_i) over those that are there and one more, of key and value 0.

    Args:
        query: [..., Q, N].
        key, value: [..., M, N].
        there: [..., M] bool; all by default.

    Returns:
        [..., Q, N].
    """
    score = query @ key.transpose(-1, -2)
    if there is not None:
        score = score.masked_fill(~there.unsqueeze(-2), -torch.inf)
    return torch.softmax(nn.functional.pad(score, (0, 1)), -1)[..., :-1] @ value
