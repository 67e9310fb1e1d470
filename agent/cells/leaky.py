"""Leaky units with learnable time constants (Khajehabdollahi, Zeraati, Giannakakis, Schaefer, Martius & Levina 2024,
"Emergent mechanisms for long timescales depend on training curriculum and affect performance in memory tasks")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.envs.options import Width


class Leaky(Cell):
    """h' = f((1 - 1/t) h + (W h + U x + b) / t), f a leaky ReLU of slope 0.1, t = 1 + exp(time) a time constant a unit.

    W begins with a zero diagonal, as the time constant is what a unit hears of itself; t - 1 is drawn from [0, 1].

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
    """

    def __init__(self, input_size: int, *, size: Width = 128) -> None:
        super().__init__(input_size, state_size=size, output_size=size)
        self.input = nn.Linear(input_size, size)
        self.hidden = nn.Linear(size, size, bias=False)
        self.time = nn.Parameter(torch.rand(size).clamp(min=1e-3).log())
        for parameter in (*self.input.parameters(), self.hidden.weight):
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)
        with torch.no_grad():
            self.hidden.weight.fill_diagonal_(0.0)

    def state_from(self, drives: dict[str, Tensor], state: Tensor) -> Tensor:
        rate = torch.sigmoid(-self.time)  # 1 / t
        return nn.functional.leaky_relu(state + rate * (drives["joint"] - state), 0.1)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN = self.state_from({"joint": self.input(x_BD) + self.hidden(state_BS)}, state_BS)
        return h_BN, h_BN

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"joint": (["input.weight", "hidden.weight"], "input.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"joint": torch.cat([x_MD, state_MS], -1)}

    def elementwise_parameters(self) -> list[str]:
        return ["time"]
