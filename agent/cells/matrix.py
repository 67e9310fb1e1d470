"""Cells whose units have a row of a matrix as their state, written with keys and read with a query (linear attention).

Of H heads each has its own keys; unit n, which belongs to head h(n), has K numbers of state, one a key. What a unit
writes (values, rates) it computes alone; keys are the same for all units of a head.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import ElementwiseCell
from lifelong.envs.options import Range, Width

#: numbers of a key
Keys = Annotated[int, Range(1, 1024)]


class MatrixCell(ElementwiseCell):
    """What cells with a matrix as state share; goes before the base that says how the recurrence is written.

    The recurrence runs over P = K*N places, place k*N + n being key k of unit n; or, with `WHOLE`, over the N units
    with their K numbers as parts. It gets, in this order, the drives `GATES` of its unit, those `KEYS` of its key, all
    K numbers of each of `EVERY`, and those `HEADS` of its head. The sensitivity of a place to what it shares with
    others is kept for every place, and summed where the gradient is needed (`fold`): exact, and P*D numbers a drive.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        keys: K.
        heads: H; the units are shared out evenly.
    """

    WHOLE: ClassVar[bool] = False
    KEYS: ClassVar[tuple[str, ...]] = ()
    EVERY: ClassVar[tuple[str, ...]] = ()
    HEADS: ClassVar[tuple[str, ...]] = ()
    #: numbers of the query for every number of a unit's state
    QUERIES: ClassVar[int] = 1

    def __init__(self, input_size: int, *, size: Width = 128, keys: Keys = 4, heads: Width = 1, **options: Any) -> None:
        if heads > size:
            raise ValueError(f"heads is {heads} for {size} units; a head needs at least one unit")
        super().__init__(input_size, size=size, **options)
        self.keys, self.heads = keys, heads
        self.interchangeable = heads == 1  # those of a head share its keys
        if self.WHOLE:
            self.PARTS = keys  # type: ignore[misc]
        else:
            self.places = keys * size
        self.state_size = self.unit_state = self.PARTS * self.places
        named = dict.fromkeys((*self.KEYS, *self.EVERY))
        shared = dict.fromkeys(named, heads * keys) | dict.fromkeys(self.HEADS, heads)
        self.weight_shared = nn.Parameter(torch.empty(sum(shared.values()), input_size))
        self.bias_shared = nn.Parameter(torch.zeros(sum(shared.values())))
        self.output_query = nn.Parameter(torch.empty(self.QUERIES * heads * keys, input_size))
        nn.init.normal_(self.weight_shared, std=max(1, input_size) ** -0.5)
        nn.init.normal_(self.output_query, std=(max(1, input_size) * keys) ** -0.5)
        place = torch.arange(self.places)
        unit, key = place % size, place // size
        head = unit * heads // size
        rows, start = [g * size + unit for g in range(len(self.GATES))], {}
        first = len(self.GATES) * size
        for name, count in shared.items():
            start[name], first = first, first + count
        rows += [start[name] + head * keys + key for name in self.KEYS]
        rows += [start[name] + head * keys + k for name in self.EVERY for k in range(keys)]
        rows += [start[name] + head for name in self.HEADS]
        self.GATES = tuple(str(g) for g in range(len(rows)))  # type: ignore[misc]
        self.rows: Tensor
        self.head: Tensor
        self.register_buffer("rows", torch.cat(rows), persistent=False)
        self.register_buffer("head", head[:size], persistent=False)

    def drive(self, x: Tensor) -> Tensor:
        unit = nn.functional.linear(x, self.weight_input, self.bias)
        shared = nn.functional.linear(x, self.weight_shared, self.bias_shared)
        return torch.cat([unit, shared], -1).index_select(-1, self.rows)

    def query(self, x: Tensor) -> Tensor:
        """The query of every unit's head, [..., Q*K, N]."""
        q = nn.functional.linear(x, self.output_query).unflatten(-1, (-1, self.heads))
        return q.index_select(-1, self.head)

    def read(self, query: Tensor, state: Tensor) -> Tensor:
        """What a query [..., K, N] finds in as much of the state [..., K*N]."""
        return (query * state.unflatten(-1, (-1, self.size))).sum(-2)

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        y = self.read(self.query(x), state)
        return y * nn.functional.silu(self.output_drive(x, state)) if self.READS else y

    def recurrent_parameters(self) -> list[str]:
        return ["weight_input", "weight_shared", "bias", "bias_shared", *self.elementwise_parameters()]

    def spread(self) -> tuple[Tensor, Tensor, Tensor]:
        weight = torch.cat([self.weight_input, self.weight_shared])[self.rows]
        bias = torch.cat([self.bias, self.bias_shared])[self.rows]
        return weight, bias, self.weight_recurrent.repeat(1, self.places // self.size)

    def fold(self, grad_GPD: Tensor, grad_MP: Tensor) -> tuple[Tensor, ...]:
        gates, counts = len(self.GATES), (len(self.bias), len(self.bias_shared))
        weight = grad_GPD.new_zeros(sum(counts), grad_GPD.shape[-1]).index_add(0, self.rows, grad_GPD.flatten(0, 1))
        bias = grad_MP.new_zeros(sum(counts)).index_add(0, self.rows, grad_MP[:gates].flatten())
        vectors = grad_MP[gates:].unflatten(-1, (-1, self.size)).sum(1)
        grads = *weight.split(counts), *bias.split(counts), vectors
        return grads[: len(self.recurrent_parameters())]

    def shared_parameters(self) -> list[str]:
        return ["weight_shared", "bias_shared", "output_query"]

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {**super().taps(), "shared": (["weight_shared"], "bias_shared"), "query": (["output_query"], None)}

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        return {**super().presynaptic(x_MD, state_MS), "shared": x_MD, "query": x_MD}
