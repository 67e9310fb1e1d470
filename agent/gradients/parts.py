"""One engine for every part of a cell that is made of cells (`agent.cells.composite`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.cells.base import Acted, Cell
from lifelong.agent.cells.composite import Composite
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT


class PartsEngine(GradientEngine):
    """An engine of its own for every part; one that a part's Jacobian does not allow is truncated BPTT there.

    Args:
        cell: the composite.
        copies: B.
        spec: kind and options of the engine.
    """

    cell: Composite

    def __init__(self, cell: Composite, copies: int, spec: Mapping[str, Any]) -> None:
        super().__init__(cell, copies)
        self.engines = [engine_for(spec, part, copies, part_of_one=True) for part in cell.cells]
        if spec["kind"] != "bptt" and all(type(engine) is BPTT for engine in self.engines):
            kinds = ", ".join(sorted({part.jacobian for part in cell.cells}))
            raise ConfigError(
                f"gradient {spec['kind']} can train no part of the cell: their state Jacobians are {kinds}; use "
                "gradient bptt, or a part with a diagonal or block Jacobian"
            )
        part = registry.load("gradient", spec["kind"])
        self.approximation, self.inside = part.approximation, part.inside

    def seed(self, seed: int) -> None:
        for k, engine in enumerate(self.engines):
            engine.seed(seed + k)

    def attach(self, state_BS: Tensor, index: Tensor | None = None) -> Tensor:
        states = zip(self.engines, self.cell.split(state_BS), strict=True)
        return torch.cat([engine.attach(state.contiguous(), index) for engine, state in states], -1)

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.cell.sequence_of(self.engines, x_TBD, state_BS, is_init_TB)

    @torch.no_grad()
    def trace(
        self,
        x_TBD: Tensor,
        state_TBS: Tensor,
        is_init_TB: Tensor,
        index: Tensor | None = None,
        *,
        only_pass: bool = False,
    ) -> Any:
        before = (state_TBS * (~is_init_TB).unsqueeze(-1)).flatten(0, 1)
        heard = self.cell.heard(x_TBD.flatten(0, 1), before)
        return [
            engine.trace(x.unflatten(0, x_TBD.shape[:2]), state.contiguous(), is_init_TB, index, only_pass=only_pass)
            for engine, x, state in zip(self.engines, heard, self.cell.split(state_TBS), strict=True)
        ]

    def advance(self, trace: Any) -> None:
        for engine, own in zip(self.engines, trace, strict=True):
            engine.advance(own)

    def reset(self, mask_B: Tensor) -> None:
        for engine in self.engines:
            engine.reset(mask_B)

    def reset_units(self, units: Tensor, index: Tensor | None = None) -> None:
        for k, engine in enumerate(self.engines):
            engine.reset_units(self.cell.units_of(k, units), index)

    def exact_parameters(self) -> list[str]:
        return [f"parts.{k}.{name}" for k, engine in self._last() for name in engine.exact_parameters()]

    def approximate_parameters(self) -> list[str]:
        return [f"parts.{k}.{name}" for k, engine in self._last() for name in engine.approximate_parameters()]

    def _last(self) -> list[tuple[int, GradientEngine]]:
        return [(k, engine) for k, engine in enumerate(self.engines) if self.cell.is_last(k)]

    def report(self) -> dict[str, Tensor]:
        """The largest of each number over the parts."""
        found: dict[str, list[Tensor]] = {}
        for engine in self.engines:
            for name, value in engine.report().items():
                found.setdefault(name, []).append(value)
        return {name: torch.stack(values).max() for name, values in found.items()}

    def histograms(self) -> dict[str, Tensor]:
        named = [(k, each) for k, engine in enumerate(self.engines) for each in engine.histograms().items()]
        return {f"{name}_{k}": x for k, (name, x) in named}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{k}.{name}": x for k, engine in enumerate(self.engines) for name, x in engine.state_dict().items()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        for k, engine in enumerate(self.engines):
            own = {name.partition(".")[2]: x for name, x in saved.items() if name.partition(".")[0] == str(k)}
            engine.load_state_dict(own)


def engine_for(spec: Mapping[str, Any], cell: Cell, copies: int, *, part_of_one: bool = False) -> GradientEngine:
    """The engine that `spec` describes, for a cell or for the parts of one."""
    kind = registry.load("gradient", spec["kind"])
    if isinstance(cell, Composite) and not kind.whole:
        return PartsEngine(cell, copies, spec)
    if not cell.recurrent_parameters():  # no state depends on a parameter, so there is nothing to carry
        return BPTT(cell, copies)
    if part_of_one and cell.jacobian not in kind.jacobians:
        return BPTT(cell, copies)
    engine: GradientEngine = registry.build("gradient", spec, cell, copies)
    return engine


def carry_numbers(spec: Mapping[str, Any], cell: Cell) -> int:
    """How many numbers the carry of one copy has, for a cell or for the parts of one."""
    engine = registry.load("gradient", spec["kind"])
    if isinstance(cell, Composite) and not engine.whole:
        return sum(carry_numbers(spec, part) for part in cell.cells if part.jacobian in engine.jacobians)
    numbers: int = engine.carry_numbers(cell)
    return numbers
