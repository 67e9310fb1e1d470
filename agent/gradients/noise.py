"""Random signs that are a function of a seed, a copy and how many it has drawn: nothing but a count needs to be saved,
and they are the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.gradients.sensitivity import Carry, Sensitivity

_MIXES = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))  # of splitmix64 (Steele, Lea & Flood 2014)
_GOLDEN = -0x61C8864680B583EB


def mixed(x: Tensor) -> Tensor:
    """splitmix64 of every entry, int64."""
    x = x + _GOLDEN
    for shift, factor in _MIXES:
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class Noisy(Sensitivity):
    """Base of engines that draw random signs; `count` [B] int64 in their carry says how often a copy has drawn."""

    COUNTERS = ("count",)
    _seed = 0

    def seed(self, seed: int) -> None:
        self._seed = seed

    def exact(self) -> bool:
        return False

    def signs(self, carry: Carry, index: Tensor | None, width: int) -> Tensor:
        """+1 or -1 with equal probability, [B, width], and the count goes on."""
        count_B = carry["count"]
        copies = torch.arange(self.copies, device=count_B.device) if index is None else index
        seed_B = mixed(copies + mixed(torch.full_like(copies, self._seed % (1 << 62))))
        draw_B = mixed(seed_B + count_B)
        bits = mixed(draw_B.unsqueeze(1) + torch.arange(width, device=count_B.device))
        count_B += 1
        return (1 - 2 * ((bits >> 40) & 1)).to(self.recurrent[0].dtype)
