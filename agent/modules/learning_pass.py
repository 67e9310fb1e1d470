"""What the forward pass of the learner has, and acting and evaluation have not: weight drop, other initial states."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Acted, Cell


class _Sequence(nn.Module):
    """A cell's `sequence` as a module's call, which is what `functional_call` works on."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> tuple[Tensor, Tensor]:
        return self.cell.sequence(x_TBD, state_BS, is_init_TB)


class LearningPass:
    """A cell's `sequence` with changes that regularise what is learned.

    *Weight drop* (Merity, Keskar & Socher 2018, ICLR, arXiv 1708.02182, section 3; DropConnect, Wan et al. 2013): in
    every matrix W that reads the cell's state, W -> mask W / (1 - rate), with one mask for all steps, epochs and
    minibatches of a chunk.

    *Initial states*, so that a cell works beyond the lengths that it was trained on: an episode begins with noise
    N(0, noise^2) in the memory, or with the memory that the episode before it left (`passed`), without a gradient.

    Args:
        cell: whose.
        rate: share of the recurrent weights that is absent.
        initial: what an episode begins with.
        noise: standard deviation.
        generator: of masks and noise, on the cell's device; equal on all workers.

    Raises:
        ValueError: weights are to be dropped, and no matrix of the cell reads its state.
    """

    def __init__(
        self,
        cell: Cell,
        generator: torch.Generator,
        *,
        rate: float = 0.0,
        initial: Literal["zero", "noise", "passed"] = "zero",
        noise: float = 1.0,
    ) -> None:
        self.cell, self.generator = cell, generator
        self.rate, self.initial, self.noise = rate, initial, noise
        self.weights = {name: cell.get_parameter(name) for name in _reading_state(cell)} if rate else {}
        if rate and not self.weights:
            raise ValueError("no matrix reads its state; use a dense cell, such as gru, lstm or rnn")
        self.masks: dict[str, Tensor] = {}
        self._call = _Sequence(cell)

    def draw(self) -> None:
        """New masks, for a new chunk."""
        self.masks = {name: self._mask(weight) for name, weight in self.weights.items()}

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        """The cell's `sequence` with these changes; what acting computed without them is not used."""
        step = self._masked if self.weights else self.cell.sequence
        if self.initial == "zero":
            return step(x_TBD, state_BS, is_init_TB)
        return self._begun_elsewhere(step, x_TBD, state_BS, is_init_TB)

    def _masked(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> tuple[Tensor, Tensor]:
        masked = {f"cell.{name}": weight * self.masks[name] for name, weight in self.weights.items()}
        found: tuple[Tensor, Tensor] = torch.func.functional_call(self._call, masked, (x_TBD, state_BS, is_init_TB))
        return found

    def _begun_elsewhere(
        self, step: Callable[..., tuple[Tensor, Tensor]], x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Piece by piece, from one step at which some episode begins to the next."""
        outputs, never = [], torch.zeros_like(is_init_TB)
        cuts = is_init_TB.any(1).nonzero().squeeze(1).tolist()
        for begin, end in pairwise(sorted({0, *cuts, len(x_TBD)})):
            if begin in cuts:
                begun_B1 = is_init_TB[begin].unsqueeze(1)
                state_BS = torch.where(begun_B1, self._begin(state_BS), state_BS)
            y_TBH, state_BS = step(x_TBD[begin:end], state_BS, never[begin:end])
            outputs.append(y_TBH)
        return torch.cat(outputs), state_BS

    def _begin(self, state_BS: Tensor) -> Tensor:
        if self.initial == "passed":
            return state_BS.detach()
        drawn = torch.randn(state_BS.shape, generator=self.generator, device=state_BS.device, dtype=state_BS.dtype)
        return self.noise * drawn

    def _mask(self, weight: Tensor) -> Tensor:
        kept = torch.rand(weight.shape, generator=self.generator, device=weight.device) >= self.rate
        return kept.to(weight.dtype) / (1.0 - self.rate)


def _reading_state(cell: Cell) -> list[str]:
    """The matrices of a cell that read its state, but for those of its output."""
    try:
        reads = {name for weights, _ in cell.taps().values() for name in weights} - {*cell.input_weights()}
    except NotImplementedError:
        return []
    return sorted(reads - {*cell.timeless_parameters()})
