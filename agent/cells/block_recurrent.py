"""Block-recurrent attention: state vectors that are renewed after every block of inputs (Hutchins, Schlag, Wu, Dyer &
Neyshabur 2022, "Block-Recurrent Transformers", arXiv 2203.07852, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.cells.ring import RingCell, Slots, attend
from lifelong.envs.options import Width


class BlockRecurrent(RingCell):
    """Within a block of W inputs, e_i = E x_i + t_i, the last one attends to those before it and to K state vectors:
    y = e + O [attention to e_1 .. e_i, attention to s_1 .. s_K]. After its last input the state vectors attend to each
    other and to the block, with candidate z = V [.., ..], and s' = g s + (1-g) z, g = sigmoid(b) ("fixed gate").

    One head, one layer, and no feed-forward layer behind it: a `stack` has more. State [s | ring of the block].

    Args:
        input_size: D.
        size: N, numbers of a state vector; also the output size.
        vectors: K.
        block: W.
    """

    def __init__(self, input_size: int, *, size: Width = 128, vectors: Slots = 8, block: Slots = 4) -> None:
        super().__init__(input_size, vectors * size, size, block)
        self.vectors = vectors
        self.embed, self.time = nn.Linear(input_size, size), nn.Linear(block, size, bias=False)  # E, t
        self.token = nn.Linear(size, 5 * size, bias=False)  # query, keys and values for inputs and for states
        self.own = nn.Linear(size, 5 * size, bias=False)  # of states
        self.name = nn.Parameter(torch.randn(vectors, size))  # what tells states apart that are still zero
        self.out, self.renew = nn.Linear(2 * size, size), nn.Linear(2 * size, size)  # O, V
        self.gate = nn.Parameter(0.1 * torch.randn(size) + 1)  # b
        for weight in (self.token.weight, self.own.weight):
            nn.init.normal_(weight, std=size**-0.75)  # scores of keys and queries of N numbers begin near 1

    def heard(self, x: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        """`(there, inputs, ring, e, state vectors, O's and V's arguments)`."""
        there, inputs, ring = self.remembered(x, state)
        e = self.embed(inputs) + self.time.weight.T
        s = state[..., : self.unit_state].unflatten(-1, (self.vectors, -1))
        query, key, value, key_s, value_s = self.token(e).chunk(5, -1)
        query_s, own_key, own_value, out_key, out_value = self.own(s + self.name).chunk(5, -1)
        last = query[..., :1, :]
        read = torch.cat([attend(last, key, value, there), attend(last, out_key, out_value)], -1).squeeze(-2)
        among = attend(query_s, own_key, own_value)
        return there, inputs, ring, e, s, read, torch.cat([among, attend(query_s, key_s, value_s, there)], -1)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        there, _, ring, e, s, read, renewing = self.heard(x_BD, state_BS)
        gate, full = torch.sigmoid(self.gate), there.all(-1, keepdim=True)
        renewed = gate * s + (1 - gate) * self.renew(renewing)
        s = torch.where(full.unsqueeze(-1), renewed, s)
        return e[..., 0, :] + self.out(read), torch.cat([s.flatten(-2), ring.masked_fill(full, 0.0)], -1)

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {
            "embed": (["embed.weight", "time.weight"], "embed.bias"),
            "token": (["token.weight"], None),
            "own": (["own.weight"], None),
            "out": (["out.weight"], "out.bias"),
            "renew": (["renew.weight"], "renew.bias"),
        }

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        _, inputs, _, e, s, read, renewing = self.heard(x_MD, state_MS)
        rows = {"embed": self.read_rows(inputs), "token": e.flatten(0, 1), "own": (s + self.name).flatten(0, 1)}
        return {**rows, "out": read, "renew": renewing.flatten(0, 1)}

    def elementwise_parameters(self) -> list[str]:
        return ["gate", "name"]

    def input_weights(self) -> list[str]:
        return ["embed.weight"]

    def timeless_parameters(self) -> list[str]:
        return ["out.weight", "out.bias"]
