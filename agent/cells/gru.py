"""GRU in the form of cuDNN and torch.nn.GRU (Cho et al. 2014; the reset gate acts after the recurrent product)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agent.cells.base import Cell


class GRU(Cell):
    """r, z = sigmoid(W x + U h + b), n = tanh(W_n x + b_n + r (U_n h + c_n)), h' = (1-z) n + z h. Gate order r, z, n.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
    """

    def __init__(self, input_size: int, *, size: int = 128) -> None:
        super().__init__(input_size, state_size=size, output_size=size)
        self.size = size
        self.input = nn.Linear(input_size, 3 * size)
        self.hidden = nn.Linear(size, 3 * size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)

    def _update(self, u_BGN: Tensor, h_BN: Tensor) -> Tensor:
        ur, uz, un = u_BGN.chunk(3, -1)
        vr, vz, vn = self.hidden(h_BN).chunk(3, -1)
        z = torch.sigmoid(uz + vz)
        n = torch.tanh(un + torch.sigmoid(ur + vr) * vn)
        return n + z * (h_BN - n)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN = self._update(self.input(x_BD), state_BS)
        return h_BN, h_BN

    def sequence(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> tuple[Tensor, Tensor]:
        keep_TB1 = (~is_init_TB).to(x_TBD.dtype).unsqueeze(-1)
        outputs = []
        for u_BGN, keep_B1 in zip(self.input(x_TBD), keep_TB1, strict=True):
            state_BS = self._update(u_BGN, state_BS * keep_B1)
            outputs.append(state_BS)
        return torch.stack(outputs), state_BS

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"input": (["input.weight"], "input.bias"), "recurrent": (["hidden.weight"], "hidden.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"input": x_MD, "recurrent": state_MS}
