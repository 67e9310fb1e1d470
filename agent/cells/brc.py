"""BRC, the bistable recurrent cell (Vecoven, Ernst & Drion 2021, "A bio-inspired bistable recurrent cell allows for
long-lasting memory", PLOS ONE 16(6) e0252676, eqs. 3-5)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import DiagonalCell


class BRC(DiagonalCell):
    """a = 1 + tanh(W_a x + v_a h + b_a), c = sigmoid(W_c x + v_c h + b_c), h' = c h + (1-c) tanh(W x + b + a h).

    A unit with a > 1 has two stable states, and what it has stored stays.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
    """

    GATES: ClassVar[tuple[str, ...]] = ("feedback", "update", "candidate")
    VECTORS: ClassVar[tuple[str, ...]] = ("feedback", "update")

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        feedback = 1 + torch.tanh(drives[0] + vectors[0] * c)
        kept = torch.sigmoid(drives[1] + vectors[1] * c)
        return kept * c + (1 - kept) * torch.tanh(drives[2] + feedback * c)
