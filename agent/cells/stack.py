"""Layers of cells with residual connections and normalisation (the block of deep recurrent networks, as in Orvieto et
al. 2023, arXiv 2303.06349, figure 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from lifelong.agent.cells.composite import Composite, Spec, build
from lifelong.envs.options import Width


class Stack(Composite):
    """h_1 = f_1(x), h_l = h_{l-1} + f_l(norm(h_{l-1})), y = h_L, each f_l a cell; without `residual`
    h_l = f_l(norm(h_{l-1})).

    With a gradient engine that carries, the last layer's gradient is what the engine says of its cell; what lower
    layers have contributed to the state of higher ones before the chunk is left out (Irie, Gopalakrishnan & Schmidhuber
    2024, arXiv 2305.19044: several layers together are a dense recurrent network).

    Args:
        input_size: D.
        size: N of every layer that says nothing else; residual connections need layers of equal output.
        layers: the cells, from below.
        norm: layer normalises what a layer hears of the one below, without parameters.
        residual: whether what a layer hears is added to what it says.
    """

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        layers: Sequence[Spec] = ("elstm", "elstm"),
        norm: Literal["layer", "none"] = "layer",
        residual: bool = True,
    ) -> None:
        if not layers:
            raise ValueError("layers is empty; a stack needs at least one cell")
        parts, width = [], input_size
        for spec in layers:
            parts.append(build(spec, width, size=size))
            width = parts[-1].output_size
        widths = [part.output_size for part in parts]
        if residual and len(set(widths)) > 1:
            raise ValueError(f"layers have outputs of {widths}; with residual they must be equal")
        super().__init__(input_size, parts, width, parts[-1].units)
        self.norm, self.residual = norm, residual

    def flow(self, x: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
        h = run(0, x)
        for k in range(1, len(self.cells)):
            heard = nn.functional.layer_norm(h, h.shape[-1:]) if self.norm == "layer" else h
            h = h + run(k, heard) if self.residual else run(k, heard)
        return h

    def is_last(self, k: int) -> bool:
        return k == len(self.cells) - 1

    def units_of(self, k: int, units: Tensor) -> Tensor:
        return units[units < self.cells[k].units]
