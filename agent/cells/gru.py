"""GRU in the form of cuDNN and torch.nn.GRU (Cho et al. 2014; the reset gate acts after the recurrent product)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Acted, Cell
from lifelong.envs.options import Width
from lifelong.kernels.acting import read_out
from lifelong.kernels.dense import Dense, add_groups, copy
from lifelong.kernels.gru_sequence import compiled, gru_call, gru_sequence, kept
from lifelong.kernels.loop import Call, Calls, Direct, Each


class GRU(Cell):
    """r, z = sigmoid(W x + U h + b), n = tanh(W_n x + b_n + r (U_n h + c_n)), h' = (1-z) n + z h. Gate order r, z, n.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
    """

    def __init__(self, input_size: int, *, size: Width = 128) -> None:
        super().__init__(input_size, state_size=size, output_size=size)
        self.size = size
        self.input = nn.Linear(input_size, 3 * size)
        self.hidden = nn.Linear(size, 3 * size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)

    def state_from(self, drives: dict[str, Tensor], state: Tensor) -> Tensor:
        ur, uz, un = drives["input"].chunk(3, -1)
        vr, vz, vn = drives["recurrent"].chunk(3, -1)
        z = torch.sigmoid(uz + vz)
        n = torch.tanh(un + torch.sigmoid(ur + vr) * vn)
        return n + z * (state - n)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN = self.state_from({"input": self.input(x_BD), "recurrent": self.hidden(state_BS)}, state_BS)
        return h_BN, h_BN

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        bias, inside = self._biases()
        u_TBGN = nn.functional.linear(x_TBD, self.input.weight, bias)
        return gru_sequence(u_TBGN, self.hidden.weight, inside, state_BS, is_init_TB)

    def _biases(self) -> tuple[Tensor, Tensor]:
        """Of the input's drive and of the recurrent one: only n's recurrent bias is multiplied by a gate."""
        outside, inside = self.hidden.bias.split((2 * self.size, self.size))
        return self.input.bias + nn.functional.pad(outside, (0, self.size)), inside

    def bias_calls(self) -> tuple[Tensor, Tensor, list[Call | Direct]]:
        """The same, where they lie and will lie, and the calls that put them there."""
        bias, gates = torch.empty_like(self.input.bias).detach(), 2 * self.size
        added = self.hidden.bias.detach()
        calls = [copy(self.input.bias.detach(), bias), add_groups(added[None, :gates], bias[:gates])]
        return bias, added[gates:], [*calls]

    def compiled(self) -> bool:
        return compiled(self.hidden.weight)

    def read_out_calls(
        self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor, weight_PH: Tensor, bias_P: Tensor
    ) -> tuple[Calls, Tensor, tuple[Tensor, ...]]:
        bias, inside, biases = self.bias_calls()
        (T, B, _), N = x_TBD.shape, self.size
        u_BM, drive, rows = x_TBD.new_empty(B, 3 * N), Dense(self.input.weight, bias, rows=B), kept(x_TBD, T, B, N)
        step = gru_call(u_BM, self.hidden.weight, inside, state_TBS, is_init_TB, rows)
        read, read_TBP = read_out(state_TBS[1:], weight_PH, bias_P)
        pack = [*biases, *drive.pack(backward=False), *step.pack, *read.pack]
        return Calls(pack, [drive.forward(Each(x_TBD), u_BM), *step.step, *read.step]), read_TBP, rows

    @torch.no_grad()
    def states(self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor) -> Tensor:
        return self.sequence(x_TBD, state_BS, is_init_TB)[0]

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"input": (["input.weight"], "input.bias"), "recurrent": (["hidden.weight"], "hidden.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {"input": x_MD, "recurrent": state_MS}
