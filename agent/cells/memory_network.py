"""End-to-end memory network over a ring of past inputs (Sukhbaatar, Szlam, Weston & Fergus 2015, "End-To-End Memory
Networks", arXiv 1503.08895, section 2)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from lifelong.agent.cells.ring import RingCell, Slots, attend
from lifelong.envs.options import Range, Width


class MemoryNetwork(RingCell):
    """u = B x, then for every hop u <- u + sum_i p_i c_i with p = softmax(u m_i), m_i = A x_i + a_i, c_i = C x_i + e_i;
    y = u. x_i is the input of i steps ago, a_i and e_i encode the time; one more memory, of zeros, stands for nothing.

    The state is what was heard, so no parameter acts on it, and no gradient is truncated.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        slots: M, how many inputs are remembered.
        hops: how often the memory is asked.
    """

    def __init__(
        self, input_size: int, *, size: Width = 128, slots: Slots = 16, hops: Annotated[int, Range(1, 100)] = 3
    ) -> None:
        super().__init__(input_size, 0, size, slots)
        self.hops = hops
        self.query = nn.Linear(input_size, size)  # B
        self.key, self.value = (nn.Linear(input_size, size, bias=False) for _ in range(2))  # A, C
        self.key_time, self.value_time = (nn.Linear(slots, size, bias=False) for _ in range(2))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        there, inputs, state_BS = self.remembered(x_BD, state_BS)
        key, value = self.key(inputs) + self.key_time.weight.T, self.value(inputs) + self.value_time.weight.T
        u = self.query(x_BD).unsqueeze(-2)
        for _ in range(self.hops):
            u = u + attend(u, key, value, there)
        return u.squeeze(-2), state_BS

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {
            "query": (["query.weight"], "query.bias"),
            "key": (["key.weight", "key_time.weight"], None),
            "value": (["value.weight", "value_time.weight"], None),
        }

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        read = self.read_rows(self.remembered(x_MD, state_MS)[1])
        return {"query": x_MD, "key": read, "value": read}

    def input_weights(self) -> list[str]:
        return ["query.weight", "key.weight", "value.weight"]

    def timeless_parameters(self) -> list[str]:
        return [name for name, _ in self.named_parameters()]

    def recurrent_parameters(self) -> list[str]:
        return []
