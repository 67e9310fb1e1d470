"""eLSTM: the element-wise LSTM (Irie, Gopalakrishnan, Schmidhuber 2024, arXiv 2305.19044, eqs. 5-7)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Acted, DiagonalCell
from lifelong.envs.options import Interval, Weight, Width
from lifelong.kernels.elstm import ElstmAct, elstm_layer
from lifelong.kernels.loop import Calls


class ELSTM(DiagonalCell):
    """f = sigmoid(F x + v_f c + b_f), z = tanh(Z x + v_z c + b_z), c' = f c + (1-f) z,
    y = sigmoid(W_o x + U_o c' + b_o) c'.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        forget_bias: b_f is drawn uniformly from [low, high]: a spread of time constants from the first step on.
        weight_std: standard deviation of the initial F, Z, v; the paper's code has 0.1.
    """

    GATES: ClassVar[tuple[str, ...]] = ("forget", "candidate")
    VECTORS: ClassVar[tuple[str, ...]] = ("forget", "candidate")

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        forget_bias: Interval = (0.0, 4.0),
        weight_std: Weight = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(input_size, size=size, **options)
        low, high = (float(b) for b in forget_bias)
        nn.init.normal_(self.weight_input, std=weight_std)
        nn.init.normal_(self.weight_recurrent, std=weight_std)
        with torch.no_grad():
            self.bias[:size].uniform_(low, high)
        self._act = ElstmAct()
        self.output_input = nn.Parameter(torch.empty(size, input_size))  # W_o
        self.output_state = nn.Parameter(torch.empty(size, size))  # U_o
        self.output_bias = nn.Parameter(torch.zeros(size))  # b_o
        for weight in (self.output_input, self.output_state):
            bound = (input_size + size) ** -0.5
            nn.init.uniform_(weight, -bound, bound)
        # a plain tuple: a module looks its parameters up one by one, at every step
        self._act_weights = (
            self.weight_input,
            self.bias,
            self.weight_recurrent,
            self.output_input,
            self.output_state,
            self.output_bias,
        )

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        f = torch.sigmoid(drives[0] + vectors[0] * c)
        z = torch.tanh(drives[1] + vectors[1] * c)
        return f * c + (1 - f) * z

    def read_out(
        self, x_BD: Tensor, state_BS: Tensor, is_init_B: Tensor, weight_PH: Tensor, bias_P: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if torch.is_grad_enabled():
            return super().read_out(x_BD, state_BS, is_init_B, weight_PH, bias_P)
        read_BP, c_BN, gate_BN = self._act(x_BD, *self._act_weights, weight_PH, bias_P, state_BS, is_init_B)
        return read_BP, c_BN, () if gate_BN is None else (gate_BN,)

    def compiled(self) -> bool:
        return self._act.compiled(self.bias)

    def read_out_calls(
        self, x_TBD: Tensor, state_TBS: Tensor, is_init_TB: Tensor, weight_PH: Tensor, bias_P: Tensor
    ) -> tuple[Calls, Tensor, tuple[Tensor, ...]]:
        (T, B, _), P = x_TBD.shape, weight_PH.shape[0]
        read_TBP, gate_TBN = x_TBD.new_empty(T, B, P), x_TBD.new_empty(T, B, self.size)
        weights = (*self._act_weights, weight_PH, bias_P)
        return self._act.calls(x_TBD, weights, state_TBS, is_init_TB, read_TBP, gate_TBN), read_TBP, (gate_TBN,)

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.solver is not None:
            return super().sequence(x_TBD, state_BS, is_init_TB)
        h_TBN, c_BN, _, _ = elstm_layer(
            x_TBD,
            self.weight_input,
            self.bias,
            self.weight_recurrent.flatten(),
            self.output_input,
            self.output_state,
            self.output_bias,
            state_BS,
            is_init_TB,
            known=None if acted is None else (acted.state_TBS, acted.kept[0]),
        )
        return h_TBN, c_BN

    def output(self, x: Tensor, c: Tensor) -> Tensor:
        from_input = nn.functional.linear(x, self.output_input, self.output_bias)
        return torch.sigmoid(from_input + nn.functional.linear(c, self.output_state)) * c

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"input": (["weight_input"], "bias"), "output": (["output_input", "output_state"], "output_bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        c_MN = self.recurrence(self.drive(x_MD).split(self.size, -1), self.weight_recurrent.unbind(0), state_MS)
        return {"input": x_MD, "output": torch.cat([x_MD, c_MN], -1)}
