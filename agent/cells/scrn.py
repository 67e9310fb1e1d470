"""SCRN, the structurally constrained recurrent network (Mikolov, Joulin, Chopra, Mathieu & Ranzato 2015, "Learning
Longer Memory in Recurrent Neural Networks", arXiv 1412.7753, eqs. 2-4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.envs.options import Share, Width


class SCRN(Cell):
    """s' = d s + (1-d) B x, h' = sigmoid(P s' + A x + R h + b), y = [h', s']. State [h | s].

    A unit is a pair: one number that is renewed at every step, and one that changes slowly.

    Args:
        input_size: D.
        size: N, the number of hidden and of context units; the output has 2N numbers.
        decay: d.
    """

    def __init__(self, input_size: int, *, size: Width = 128, decay: Share = 0.95) -> None:
        super().__init__(input_size, state_size=2 * size, output_size=2 * size, units=size)
        self.decay = float(decay)
        self.input = nn.Linear(input_size, size)  # A
        self.slow = nn.Linear(input_size, size, bias=False)  # B
        self.hidden = nn.Linear(size, size, bias=False)  # R
        self.context = nn.Linear(size, size, bias=False)  # P

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN, s_BN = state_BS.chunk(2, -1)
        s_BN = self.decay * s_BN + (1 - self.decay) * self.slow(x_BD)
        h_BN = torch.sigmoid(self.context(s_BN) + self.input(x_BD) + self.hidden(h_BN))
        state_BS = torch.cat([h_BN, s_BN], -1)
        return state_BS, state_BS

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        joint = ["input.weight", "hidden.weight", "context.weight"]
        return {"slow": (["slow.weight"], None), "joint": (joint, "input.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        h_MN, s_MN = state_MS.chunk(2, -1)
        s_MN = self.decay * s_MN + (1 - self.decay) * self.slow(x_MD)
        return {"slow": x_MD, "joint": torch.cat([x_MD, h_MN, s_MN], -1)}
