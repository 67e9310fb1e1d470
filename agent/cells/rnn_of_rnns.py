"""RNNs of RNNs: stable areas, coupled so that the whole is stable (Kozachkov, Ennis & Slotine 2022, "RNNs of RNNs:
Recursive Construction of Stable Assemblies of Recurrent Neural Networks", NeurIPS, theorems 1 and 6)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.envs.options import Range, Width


class RNNOfRNNs(Cell):
    """h' = h + a (-h + relu((W + L) h + U x + b)), W = I - R^T R - e I in each area, L = B - B^T between areas.

    W is symmetric with eigenvalues below 1, and L has no symmetric part, so two trajectories under the same input come
    together, whatever R and B are. R begins at the identity, B at 0: at first every unit decays alone.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        areas: the units are shared out evenly among so many.
        rate: a, the step over the time constant.
    """

    units_apart: ClassVar[bool] = False
    #: e
    MARGIN: ClassVar[float] = 1e-3

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        areas: Annotated[int, Range(1, 10**4)] = 4,
        rate: Annotated[float, Range(0.0, 1.0, above=True)] = 0.1,
    ) -> None:
        super().__init__(input_size, state_size=size, output_size=size)
        self.rate = float(rate)
        self.input = nn.Linear(input_size, size)
        self.root = nn.Parameter(torch.eye(size) + 0.1 * torch.randn(size, size) / size**0.5)  # R
        self.between = nn.Parameter(torch.zeros(size, size))  # B
        area = torch.arange(size) * min(areas, size) // size
        self.same: Tensor
        self.register_buffer("same", area[:, None] == area, persistent=False)

    def coupling(self) -> Tensor:
        """W + L [N, N]."""
        root, between = self.root * self.same, self.between * ~self.same
        return (1 - self.MARGIN) * torch.eye(self.units).to(root) - root.T @ root + between - between.T

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        heard = nn.functional.linear(state_BS, self.coupling())
        h_BN = state_BS + self.rate * (torch.relu(heard + self.input(x_BD)) - state_BS)
        return h_BN, h_BN

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"input": (["input.weight"], "input.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"input": x_MD}

    def elementwise_parameters(self) -> list[str]:
        return ["root", "between"]  # no matrix reads the units as it is, so there is nothing to project
