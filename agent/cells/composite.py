"""Cells made of cells: what `stack` and `ensemble` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent import registry
from lifelong.agent.cells.base import Acted, Cell

#: a part's kind, or its kind and options
Spec = str | Mapping[str, Any]


class Composite(Cell):
    """A cell of several cells, the parts; its state is theirs, one after the other.

    A subclass says in `flow` what each part hears and what is made of what they say. Gradient engines are those of the
    parts (`agent.gradients.parts`), so its Jacobian has no structure of its own.

    Args:
        input_size: D.
        parts: the cells.
        output_size: H.
        units: N.
    """

    composite: ClassVar[bool] = True
    units_apart: ClassVar[bool] = False

    def __init__(self, input_size: int, parts: Sequence[Cell], output_size: int, units: int) -> None:
        super().__init__(input_size, sum(part.state_size for part in parts), output_size, units)
        self.parts = nn.ModuleList(parts)
        self.cells = tuple(parts)  # a module list looks its modules up one by one, at every step

    def flow(self, x: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The output [..., H], where `run(k, x)` gives what part k says when it hears x."""
        raise NotImplementedError

    def is_last(self, k: int) -> bool:
        """Whether no other part hears part k, so that its gradient is as exact as that of a cell of its own."""
        raise NotImplementedError

    def units_of(self, k: int, units: Tensor) -> Tensor:
        """Those of `units` (int64) that part k has, as it counts them."""
        raise NotImplementedError

    def split(self, state: Tensor) -> tuple[Tensor, ...]:
        """The states of the parts [..., S_k]."""
        return state.split([part.state_size for part in self.cells], -1)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        states = list(self.split(state_BS))

        def run(k: int, x: Tensor) -> Tensor:
            y, states[k] = self.cells[k].step(x, states[k])
            return y

        return self.flow(x_BD, run), torch.cat(states, -1)

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.sequence_of(self.cells, x_TBD, state_BS, is_init_TB)

    def sequence_of(
        self, parts: Sequence[Any], x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`sequence`, through that of `parts`: the cells, or gradient engines in their place."""
        states = [state.contiguous() for state in self.split(state_BS)]

        def run(k: int, x: Tensor) -> Tensor:
            y, states[k] = parts[k].sequence(x, states[k], is_init_TB)
            return y

        return self.flow(x_TBD, run), torch.cat(states, -1)

    @torch.no_grad()
    def states(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> Tensor:
        first, seen = [state.contiguous() for state in self.split(state_BS)], {}

        def run(k: int, x: Tensor) -> Tensor:
            seen[k] = self.cells[k].states(x, first[k], is_init_TB)
            return self.cells[k].sequence(x, first[k], is_init_TB)[0]

        self.flow(x_TBD, run)
        return torch.cat([seen[k] for k in range(len(first))], -1)

    def heard(self, x: Tensor, state: Tensor) -> list[Tensor]:
        """What each part hears, [M, D_k], given M inputs and the (reset) states before them."""
        states, seen = self.split(state), {}

        def run(k: int, x: Tensor) -> Tensor:
            seen[k] = x
            return self.cells[k].step(x, states[k])[0]

        self.flow(x, run)
        return [seen[k] for k in range(len(states))]

    def reset_units(self, state_BS: Tensor, units: Tensor) -> None:
        for k, (part, state) in enumerate(zip(self.cells, self.split(state_BS), strict=True)):
            part.reset_units(state, self.units_of(k, units))

    def _named(self, of: Callable[[Cell], list[str]]) -> list[str]:
        return [f"parts.{k}.{name}" for k, part in enumerate(self.cells) for name in of(part)]

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        taps = {}
        for k, part in enumerate(self.cells):
            for tap, (names, bias) in part.taps().items():
                taps[f"{k}.{tap}"] = [f"parts.{k}.{n}" for n in names], f"parts.{k}.{bias}" if bias else None
        return taps

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        heard, states = self.heard(x_MD, state_MS), self.split(state_MS)
        parts = enumerate(zip(self.cells, heard, states, strict=True))
        return {f"{k}.{tap}": seen for k, (part, x, s) in parts for tap, seen in part.presynaptic(x, s).items()}

    def elementwise_parameters(self) -> list[str]:
        return self._named(lambda part: part.elementwise_parameters())

    def time_parameters(self) -> list[str]:
        return self._named(lambda part: part.time_parameters())

    def timeless_parameters(self) -> list[str]:
        return [
            f"parts.{k}.{n}" for k, part in enumerate(self.cells) if self.is_last(k) for n in part.timeless_parameters()
        ]

    def maps(self, name: str) -> int:
        _, k, inner = name.split(".", 2)
        return self.cells[int(k)].maps(inner)

    def unit_parameters(self) -> tuple[dict[str, int], dict[str, int]]:
        raise ValueError("the units of a cell that is made of several cells cannot be reset one by one")


def build(spec: Spec, input_size: int, **default: Any) -> Cell:
    """The cell that `spec` describes; `default` are options for those that it does not give."""
    whole = {"kind": spec} if isinstance(spec, str) else dict(spec)
    part: Cell = registry.build("cell", {**default, **whole}, input_size)
    return part
