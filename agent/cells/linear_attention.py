"""Linear attention (Katharopoulos, Vyas, Pappas & Fleuret 2020, "Transformers are RNNs: Fast Autoregressive
Transformers with Linear Attention", arXiv 2006.16236, eqs. 16-20)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import BlockCell
from lifelong.agent.cells.matrix import MatrixCell


class LinearAttention(MatrixCell, BlockCell):
    """S' = S + f(k) v^T, z' = z + f(k), y = f(q) S' / (f(q) z'), f(u) = elu(u) + 1, with q, k, v linear in x.

    It forgets nothing within an episode. State [S | z], with z once for every unit.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        keys: K, numbers of a key; a unit has 2K numbers of state.
        heads: H; the units are shared out evenly.
    """

    jacobian: ClassVar[str] = "linear_diagonal"
    GATES: ClassVar[tuple[str, ...]] = ("value",)
    KEYS: ClassVar[tuple[str, ...]] = ("key",)

    def recurrence(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, key = drives
        key = torch.where(key > 0, key + 1, torch.exp(torch.clamp(key, max=0.0)))
        return h + key * value, c + key

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        query, (written, weight) = nn.functional.elu(self.query(x)) + 1, state.chunk(2, -1)
        return self.read(query, written) / (self.read(query, weight) + 1e-6)
