"""The simple recurrent network (Elman 1990, "Finding structure in time", Cognitive Science 14), in the form of
torch.nn.RNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Acted, Cell
from lifelong.envs.options import Width


class RNN(Cell):
    """h' = tanh(W x + U h + b).

    U begins orthogonal (Saxe, McClelland & Ganguli 2014), so that a gradient neither grows nor shrinks on its way back
    as long as the units are not saturated.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
    """

    def __init__(self, input_size: int, *, size: Width = 128) -> None:
        super().__init__(input_size, state_size=size, output_size=size)
        self.size = size
        self.input = nn.Linear(input_size, size)
        self.hidden = nn.Linear(size, size, bias=False)
        for parameter in self.input.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)
        nn.init.orthogonal_(self.hidden.weight)

    def state_from(self, drives: dict[str, Tensor], state: Tensor) -> Tensor:
        return torch.tanh(drives["joint"])

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN = self.state_from({"joint": self.input(x_BD) + self.hidden(state_BS)}, state_BS)
        return h_BN, h_BN

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        keep_TB1 = (~is_init_TB).to(x_TBD.dtype).unsqueeze(-1)
        weight_NN, states = self.hidden.weight.T, []
        for u_BN, keep_B1 in zip(self.input(x_TBD).unbind(0), keep_TB1.unbind(0), strict=True):
            state_BS = torch.tanh(torch.addmm(u_BN, state_BS * keep_B1, weight_NN))
            states.append(state_BS)
        return torch.stack(states), state_BS

    @torch.no_grad()
    def states(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> Tensor:
        return self.sequence(x_TBD, state_BS, is_init_TB)[0]

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"joint": (["input.weight", "hidden.weight"], "input.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"joint": torch.cat([x_MD, state_MS], -1)}
