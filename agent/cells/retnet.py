"""Retention, the recurrence of RetNet (Sun, Dong, Huang, Ma, Xia, Xue, Wang & Wei 2023, "Retentive Network: A Successor
to Transformer for Large Language Models", arXiv 2307.08621, section 2.1)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.linear import ComplexCell
from lifelong.agent.cells.matrix import Keys, MatrixCell
from lifelong.envs.options import Range, Width


class RetNet(MatrixCell, ComplexCell):
    """S' = g e^{i t} S + (1 - g) k v^T, y = Re(q S') silu(W_g x + b_g), with q, k (both complex) and v linear in x.

    Head h decays with g = 1 - 2^(-e-h), e being the `exponent`, and key k turns by t = 10000^(-k/K) a step; neither is
    learned. The factor 1 - g is in place of the paper's normalisation of each head, which would couple its units.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        keys: K, complex numbers of a key; a unit has 2K numbers of state.
        heads: H; the units are shared out evenly.
        exponent: e; the first head remembers about 2^e steps, every other one twice as many as the one before.
    """

    GATES: ClassVar[tuple[str, ...]] = ("value",)
    KEYS: ClassVar[tuple[str, ...]] = ("real", "imaginary")
    READS: ClassVar[tuple[str, ...]] = ("input",)
    QUERIES: ClassVar[int] = 2

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        keys: Keys = 4,
        heads: Width = 1,
        exponent: Annotated[float, Range(0.0, 50.0, above=True)] = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(input_size, size=size, keys=keys, heads=heads, **options)
        angle = 10000.0 ** (-torch.arange(keys) / keys)
        share = 2.0 ** (-float(exponent) - self.head)
        kept = (1 - share) * torch.polar(torch.ones(keys), angle)[:, None]
        self.share: Tensor
        self.cosine: Tensor
        self.sine: Tensor
        self.register_buffer("share", share.repeat(keys), persistent=False)
        self.register_buffer("cosine", kept.real.flatten(), persistent=False)
        self.register_buffer("sine", kept.imag.flatten(), persistent=False)

    def coefficients(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value, real, imaginary = drives
        return self.cosine, self.sine, self.share * real * value, self.share * imaginary * value

    def read(self, query: Tensor, state: Tensor) -> Tensor:
        (q_real, q_imaginary), (s_real, s_imaginary) = query.chunk(2, -2), state.chunk(2, -1)
        return super().read(q_real, s_real) - super().read(q_imaginary, s_imaginary)
