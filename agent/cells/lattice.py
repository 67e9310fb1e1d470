"""Lattice: memory slots that are changed in directions orthogonal to themselves (Karami & Mirrokni 2025, "Lattice:
Learning to Efficiently Compress the Memory", arXiv 2504.05646)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.agent.cells.matrix import Keys
from lifelong.envs.options import Width


class Lattice(Cell):
    """One step down |F(S) k - v|^2, F(s) = s / |s| slot by slot: s_i' = s_i - b k_i P(s_i) (F(S) k - v), y = F(S') q,
    with q, k, v linear in x, b = sigmoid(w x + b_b), and P(s) = (I - F(s) F(s)^T) / |s| the derivative of F.

    P lets a slot take up what is orthogonal to it, and nothing of what it holds already. |s|^2 is 1 + s^T s here, as
    memory begins at zero. State: K slots of N numbers.

    Args:
        input_size: D.
        size: N, numbers of a slot; also the output size.
        keys: K, the number of slots.
    """

    units_apart: ClassVar[bool] = False

    def __init__(self, input_size: int, *, size: Width = 128, keys: Keys = 8) -> None:
        super().__init__(input_size, state_size=keys * size, output_size=size)
        self.keys = keys
        self.value = nn.Linear(input_size, size)
        self.key = nn.Linear(input_size, 2 * keys + 1)  # query, key, rate
        nn.init.normal_(self.value.weight, std=max(1, input_size) ** -0.5)
        nn.init.normal_(self.key.weight, std=max(1, input_size) ** -0.5)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        query, key, rate = self.key(x_BD).unsqueeze(-1).split((self.keys, self.keys, 1), -2)  # [B, K, 1]
        slots = state_BS.unflatten(-1, (self.keys, -1))
        length = (1 + slots.square().sum(-1, keepdim=True)).sqrt()
        unit = slots / length
        error = (unit * key).sum(-2, keepdim=True) - self.value(x_BD).unsqueeze(-2)
        change = (error - unit * (unit * error).sum(-1, keepdim=True)) / length
        slots = slots - torch.sigmoid(rate) * key * change
        unit = slots / (1 + slots.square().sum(-1, keepdim=True)).sqrt()
        return (unit * query).sum(-2), slots.flatten(-2)

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"value": (["value.weight"], "value.bias"), "key": (["key.weight"], "key.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"value": x_MD, "key": x_MD}

    def shared_parameters(self) -> list[str]:
        return ["key.weight", "key.bias"]
