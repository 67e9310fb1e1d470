"""Tensors of a traced step as functions from an index to a node of the graph.

A tensor with an entry for each copy reads only its own copy: the index along that axis always says
which copy it is. The others are numbers, counters of a loop with an offset, or whatever was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from lifelong.kernels.compiler.graph import BOOL, DOUBLE, INDEX, REAL, Graph, Node
from lifelong.kernels.compiler.trace import Untraceable

KINDS = {
    torch.float32: REAL,
    torch.float64: DOUBLE,
    torch.int64: INDEX,
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: BOOL,
}
#: the type in which C keeps them in memory
STORED = {**KINDS, torch.bool: "uint8_t"}
#: the name of the input that says which copy this is
COPY = "b"


def name_of(slot: str) -> str:
    """The name in C of what lies in a slot."""
    return "".join(letter if letter.isalnum() else "_" for letter in slot) + "_"


class Split(Exception):
    """The loop over the counter `name` must be cut before `at`: every part of it reads one tensor of a `cat`."""

    def __init__(self, name: str, at: int) -> None:
        super().__init__(name)
        self.name, self.at = name, at


class Index(NamedTuple):
    """Where along one axis. `node` has its value; `counter` + `offset` if it is that of a loop, which runs over [low,
    high]."""

    node: Node
    low: int
    high: int
    counter: str | None = None
    offset: int = 0

    @property
    def fixed(self) -> bool:
        """Whether it is one number."""
        return self.node.op == "constant"

    @property
    def copy(self) -> bool:
        """Whether it says which copy this is."""
        return self.node.op == "input" and self.node.value == COPY


Read = Callable[[tuple[Index, ...]], Node]


class Value:
    """A tensor of `shape` (the number of copies included) and `dtype`."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, read: Read) -> None:
        if dtype not in KINDS:
            raise Untraceable(f"computes with {dtype}")
        self.shape, self.dtype, self._read = tuple(shape), dtype, read
        self._known: dict[tuple[tuple[int, int, int], ...], Node] = {}

    @property
    def kind(self) -> str:
        """The kind of its nodes."""
        return KINDS[self.dtype]

    def at(self, index: tuple[Index, ...]) -> Node:
        """The node of one entry."""
        assert len(index) == len(self.shape)
        key = tuple((each.node.index, each.low, each.high) for each in index)
        if key not in self._known:
            self._known[key] = self._read(index)
        return self._known[key]


class Indices:
    """Makes indices in a graph."""

    def __init__(self, graph: Graph, copies: int) -> None:
        self.graph, self.copies = graph, copies
        #: the index along the axis of the copies
        self.batch = Index(graph.input(COPY, INDEX), 0, copies - 1)

    def number(self, i: int) -> Index:
        """Always `i`."""
        return Index(self.graph.constant(i, INDEX), i, i)

    def loop(self, name: str, low: int, high: int) -> Index:
        """The counter of a loop from `low` to `high`, `high` not included."""
        return Index(self.graph.input(name, INDEX), low, high - 1, name) if high - low > 1 else self.number(low)

    def computed(self, node: Node, size: int) -> Index:
        """What a node says; it is trusted to lie in the axis, as torch checks it."""
        if node.op == "constant":
            return self.number(int(node.value or 0))
        return Index(node, 0, size - 1)

    def plus(self, index: Index, offset: int) -> Index:
        """Further on."""
        if offset == 0:
            return index
        if index.fixed:
            return self.number(index.low + offset)
        if index.copy:
            raise Untraceable("reads another copy")
        node = self.graph.apply("add", index.node, self.graph.constant(offset, INDEX))
        return Index(node, index.low + offset, index.high + offset, index.counter, index.offset + offset)

    def times(self, index: Index, step: int) -> Index:
        """Every so many."""
        if step == 1:
            return index
        if index.fixed:
            return self.number(index.low * step)
        if index.copy:
            raise Untraceable("reads another copy")
        node = self.graph.apply("mul", index.node, self.graph.constant(step, INDEX))
        return Index(node, index.low * step, index.high * step)

    def flat(self, index: Sequence[Index], shape: Sequence[int]) -> Node:
        """The place in memory of a contiguous tensor."""
        place = self.graph.constant(0, INDEX)
        for each, size in zip(index, shape, strict=True):
            place = self.graph.apply("mul", place, self.graph.constant(size, INDEX))
            place = self.graph.apply("add", place, each.node)
        return place

    def reshaped(self, index: tuple[Index, ...], shape: Sequence[int], source: Sequence[int]) -> tuple[Index, ...]:
        """The index into a tensor of shape `source` whose entries, one after the other, are those of one of `shape`."""
        found: list[Index] = []
        here, there = list(zip(index, shape, strict=True)), list(source)
        while there:
            size = there.pop(0)
            while here and here[0][1] == 1 != size:
                here.pop(0)
            if size == 1:
                found.append(self.number(0))
            elif here and here[0][1] == size:
                found.append(here.pop(0)[0])
            else:
                return (*found, *self._divided([each for each, _ in here], [n for _, n in here], [size, *there]))
        return tuple(found)

    def _divided(self, index: list[Index], shape: list[int], source: list[int]) -> list[Index]:
        """`reshaped` by quotients and rests."""
        graph = self.graph
        if any(each.copy for each in index):
            raise Untraceable("mixes copies in one axis")
        place = self.flat(index, shape)
        found, left = [], 1
        for size in reversed(source):
            if place.op == "constant":
                found.append(self.number(int(place.value or 0) // left % size))
            else:
                part = graph.apply("idiv", place, graph.constant(left, INDEX)) if left > 1 else place
                found.append(Index(graph.apply("imod", part, graph.constant(size, INDEX)), 0, size - 1))
            left *= size
        return found[::-1]
