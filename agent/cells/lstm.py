"""LSTM with forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000), in the gate order of torch.nn.LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Acted, Cell
from lifelong.envs.options import Bias, Width
from lifelong.kernels.acting import read_out
from lifelong.kernels.dense import Dense
from lifelong.kernels.loop import Calls, Each
from lifelong.kernels.lstm_sequence import compiled, kept, lstm_call, lstm_sequence


class LSTM(Cell):
    """i, f, o = sigmoid(W x + U h + b), g = tanh(W_g x + U_g h + b_g), c' = f c + i g, h' = o tanh(c'). State [h | c].

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        forget_bias: initial bias of the forget gate.
    """

    def __init__(self, input_size: int, *, size: Width = 128, forget_bias: Bias = 1.0) -> None:
        super().__init__(input_size, state_size=2 * size, output_size=size)
        self.size = size
        self.input = nn.Linear(input_size, 4 * size)
        self.hidden = nn.Linear(size, 4 * size, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)
        with torch.no_grad():
            self.input.bias[size : 2 * size] = forget_bias

    def state_from(self, drives: dict[str, Tensor], state: Tensor) -> Tensor:
        i, f, g, o = drives["joint"].chunk(4, -1)
        c = torch.sigmoid(f) * state[..., self.size :] + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        drive_BN = self.input(x_BD) + self.hidden(state_BS[:, : self.size])
        state_BS = self.state_from({"joint": drive_BN}, state_BS)
        return state_BS[:, : self.size], state_BS

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        return lstm_sequence(self.input(x_TBD), self.hidden.weight, state_BS, is_init_TB)

    def compiled(self) -> bool:
        return compiled(self.hidden.weight)

    def read_out_calls(
        self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor, weight_PH: Tensor, bias_P: Tensor
    ) -> tuple[Calls, Tensor, tuple[Tensor, ...]]:
        (T, B, _), N = x_TBD.shape, self.size
        u_BM, drive = x_TBD.new_empty(B, 4 * N), Dense(self.input.weight, self.input.bias, rows=B)
        rows = kept(x_TBD, T, B, N)
        step = lstm_call(u_BM, self.hidden.weight, state_TBS, is_init_TB, rows)
        read, read_TBP = read_out(state_TBS[1:, :, : self.size], weight_PH, bias_P)
        pack = [*drive.pack(backward=False), *step.pack, *read.pack]
        return Calls(pack, [drive.forward(Each(x_TBD), u_BM), *step.step, *read.step]), read_TBP, rows

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"joint": (["input.weight", "hidden.weight"], "input.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"joint": torch.cat([x_MD, state_MS[:, : self.size]], -1)}
