"""Shallow piecewise-linear RNN, clipped (Hess, Monfared, Brenner & Durstewitz 2023, "Generalized Teacher Forcing for
Learning Chaotic Dynamics", arXiv 2306.04406, eqs. 4-5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.envs.options import Width


class PLRNN(Cell):
    """z' = a z + W_1 [relu(W_2 z + t) - relu(W_2 z)] + C x + b. Bounded for |a| < 1 and bounded x.

    With `observed` the input stands for the first D units of the state before the step, as in the paper, where states
    are observed and not heard of: z = [x, z_{D+1} ...]. C begins at 0 then.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        hidden: of the layer inside, which has no memory.
        observed: the input replaces the first D units; trained with gradient `gtf`.

    Raises:
        ValueError: `observed` with fewer units than inputs.
    """

    def __init__(self, input_size: int, *, size: Width = 128, hidden: Width = 128, observed: bool = False) -> None:
        if observed and size < input_size:
            raise ValueError(f"size is {size}, and {input_size} units are observed; it must be at least as many")
        super().__init__(input_size, state_size=size, output_size=size)
        self.observed = observed
        self.input = nn.Linear(input_size, size)  # C, b
        self.inner = nn.Linear(size, hidden, bias=False)  # W_2
        self.outer = nn.Linear(hidden, size, bias=False)  # W_1
        self.threshold = nn.Parameter(torch.empty(hidden))  # t; at 0 the layer inside is silent
        nn.init.uniform_(self.threshold, -(size**-0.5), size**-0.5)
        root = torch.randn(size, size)
        positive = root @ root.T / size + torch.eye(size)
        self.decay = nn.Parameter(positive.diagonal() / torch.linalg.eigvalsh(positive)[-1])
        if observed:
            nn.init.zeros_(self.input.weight)

    def bend(self, z: Tensor) -> Tensor:
        """What the layer inside says, [..., hidden]."""
        u = self.inner(z)
        return torch.relu(u + self.threshold) - torch.relu(u)

    def known(self, x: Tensor, state: Tensor) -> Tensor:
        """The state [..., S] before a step, with what the input says of it."""
        return torch.cat([x, state[..., x.shape[-1] :]], -1) if self.observed else state

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        state_BS = self.known(x_BD, state_BS)
        z_BN = self.decay * state_BS + self.outer(self.bend(state_BS)) + self.input(x_BD)
        return z_BN, z_BN

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"inner": (["inner.weight"], None), "joint": (["input.weight", "outer.weight"], "input.bias")}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        state_MS = self.known(x_MD, state_MS)
        return {"inner": state_MS, "joint": torch.cat([x_MD, self.bend(state_MS)], -1)}

    def elementwise_parameters(self) -> list[str]:
        return ["decay", "threshold"]

    def shared_parameters(self) -> list[str]:
        return ["inner.weight", "threshold"]

    def unit_parameters(self) -> tuple[dict[str, int], dict[str, int]]:
        incoming = {"input.weight": 0, "input.bias": 0, "outer.weight": 0, "decay": 0}
        return incoming, {"inner.weight": 1}
