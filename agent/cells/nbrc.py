"""nBRC, the recurrently neuromodulated bistable cell (Vecoven, Ernst & Drion 2021, "A bio-inspired bistable recurrent
cell allows for long-lasting memory", PLOS ONE 16(6) e0252676, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.envs.options import Width


class NBRC(Cell):
    """a = 1 + tanh(W_a x + U_a h + b_a), c = sigmoid(W_c x + U_c h + b_c), h' = c h + (1-c) tanh(W x + b + a h).

    `brc` whose gates hear all units. Order a, c, candidate.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
    """

    def __init__(self, input_size: int, *, size: Width = 128) -> None:
        super().__init__(input_size, state_size=size, output_size=size)
        self.input = nn.Linear(input_size, 3 * size)
        self.hidden = nn.Linear(size, 2 * size, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)

    def state_from(self, drives: dict[str, Tensor], state: Tensor) -> Tensor:
        a, c, candidate = drives["input"].chunk(3, -1)
        from_a, from_c = drives["recurrent"].chunk(2, -1)
        kept = torch.sigmoid(c + from_c)
        return kept * state + (1 - kept) * torch.tanh(candidate + (1 + torch.tanh(a + from_a)) * state)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN = self.state_from({"input": self.input(x_BD), "recurrent": self.hidden(state_BS)}, state_BS)
        return h_BN, h_BN

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"input": (["input.weight"], "input.bias"), "recurrent": (["hidden.weight"], None)}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"input": x_MD, "recurrent": state_MS}
