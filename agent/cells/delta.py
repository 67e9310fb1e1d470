"""The delta rule (Schlag, Irie & Schmidhuber 2021, "Linear Transformers Are Secretly Fast Weight Programmers", arXiv
2102.11174, eqs. 24-27), with the keys of DeltaNet (Yang, Wang, Zhang, Shen & Kim 2024, arXiv 2406.06484)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import BlockCell
from lifelong.agent.cells.matrix import MatrixCell


class Delta(MatrixCell, BlockCell):
    """S' = S + b (v - S k) k^T, y = S' q, with b = sigmoid(W_b x + b_b) a head, k = silu(u) / |silu(u)|, and q, u, v
    linear in x: what is stored under a key is replaced in the share b.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        keys: K, numbers of a key and of a unit's state; RTRL is exact at K (K + 2) times the cost of one gate.
        heads: H; the units are shared out evenly.
    """

    WHOLE: ClassVar[bool] = True
    GATES: ClassVar[tuple[str, ...]] = ("value",)
    EVERY: ClassVar[tuple[str, ...]] = ("key",)
    HEADS: ClassVar[tuple[str, ...]] = ("rate",)

    def recurrence(  # type: ignore[override]
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], *parts: Tensor
    ) -> tuple[Tensor, ...]:
        value, *keys, rate = drives
        keys = [key * torch.sigmoid(key) for key in keys]
        norm = torch.sqrt(sum((key * key for key in keys[1:]), keys[0] * keys[0]) + 1e-12)
        keys = [key / norm for key in keys]
        found = sum((part * key for part, key in zip(parts[1:], keys[1:], strict=True)), parts[0] * keys[0])
        change = torch.sigmoid(rate) * (value - found)
        return tuple(part + change * key for part, key in zip(parts, keys, strict=True))
