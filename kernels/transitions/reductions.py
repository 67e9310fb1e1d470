"""Operations of torch that make one number of several of a copy: name in ATen -> how the result is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lifelong.kernels.compiler.graph import BOOL, INDEX, Graph, Node
from lifelong.kernels.compiler.trace import Untraceable
from lifelong.kernels.transitions.elements import better, cast
from lifelong.kernels.transitions.shapes import axis_of
from lifelong.kernels.transitions.tracer import Tracer
from lifelong.kernels.transitions.values import KINDS, Index, Split, Value

#: sums over more numbers than this are not written out
LONGEST_SUM = 256


def _reduction(
    combine: Callable[[Graph, list[Node], str], Node], kind: Callable[[Tensor, Any], str]
) -> Callable[..., Value]:
    def rule(tracer: Tracer, out: Tensor, input: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        source, indices = tracer.value(input), tracer.indices
        dims = [dim] if isinstance(dim, int) else dim
        axes = sorted(axis_of(input, d) for d in dims) if dims else list(range(input.dim()))
        if axes and axes[0] == 0 and source.shape[0] == tracer.copies:
            raise Untraceable("reduces over the copies")
        sizes = [source.shape[axis] for axis in axes]
        count = torch.Size(sizes).numel()
        if count > LONGEST_SUM:
            raise Untraceable(f"reduces {count} numbers to one; up to {LONGEST_SUM} are known")
        places: list[list[int]] = [[]]
        for size in sizes:
            places = [[*place, i] for place in places for i in range(size)]
        wanted = kind(out, input)

        def read(index: tuple[Index, ...]) -> Node:
            rest = [each for a, each in enumerate(index) if not keepdim or a not in axes]
            nodes = []
            for place in places:
                full = list(rest)
                for axis, i in zip(axes, place, strict=True):
                    full.insert(axis, indices.number(i))
                nodes.append(cast(tracer.graph, source.at(tuple(full)), wanted))
            return combine(tracer.graph, nodes, KINDS[out.dtype])

        return Value(out.shape, out.dtype, read)

    return rule


def _chain(op: str) -> Callable[[Graph, list[Node], str], Node]:
    def combine(graph: Graph, nodes: list[Node], kind: str) -> Node:
        if not nodes:
            return graph.constant(op == "and", BOOL)
        made = nodes[0]
        for node in nodes[1:]:
            made = better(graph, op, made, node) if op in ("maximum", "minimum") else graph.apply(op, made, node)
        return made

    return combine


def _sum(graph: Graph, nodes: list[Node], kind: str) -> Node:
    """In torch's order: four sums side by side, then what is left over, then the four."""
    if not nodes:
        return graph.constant(0, kind)
    sums, whole = nodes[:4], len(nodes) // 4 * 4
    if whole:
        for i, node in enumerate(nodes[4:whole]):
            sums[i % 4] = graph.apply("add", sums[i % 4], node)
        for node in nodes[whole:]:
            sums[0] = graph.apply("add", sums[0], node)
    made = sums[0]
    for node in sums[1:]:
        made = graph.apply("add", made, node)
    return made


def _mean(graph: Graph, nodes: list[Node], kind: str) -> Node:
    return graph.apply("div", _sum(graph, nodes, kind), graph.constant(len(nodes), kind))


def _own(out: Tensor, input: Any) -> str:
    return KINDS[out.dtype]


def _theirs(out: Tensor, input: Any) -> str:
    return KINDS[input.dtype]


def _best(op: str) -> Callable[..., Value]:
    """argmax and argmin: the first of the largest or smallest."""

    def rule(tracer: Tracer, out: Tensor, input: Any, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            raise Untraceable(f"uses torch.{'argmax' if op == 'gt' else 'argmin'} over all copies")

        def combine(graph: Graph, nodes: list[Node], kind: str) -> Node:
            best, place = nodes[0], graph.constant(0, INDEX)
            for i, node in enumerate(nodes[1:], 1):
                wins = graph.apply(op, node, best)
                best = graph.apply("where", wins, node, best)
                place = graph.apply("where", wins, graph.constant(i, INDEX), place)
            return place

        return _reduction(combine, _theirs)(tracer, out, input, dim, keepdim)

    return rule


def _running(tracer: Tracer, out: Tensor, input: Any, dim: int, **_: Any) -> Value:
    """Sums of all entries up to each, of integers."""
    axis, source, indices = axis_of(input, dim), tracer.value(input), tracer.indices
    if out.dtype.is_floating_point or out.shape[axis] > LONGEST_SUM:
        raise Untraceable(f"uses torch.cumsum of {'floats' if out.dtype.is_floating_point else out.shape[axis]}")
    kind = KINDS[out.dtype]

    def read(index: tuple[Index, ...]) -> Node:
        here = index[axis]
        if here.copy:
            raise Untraceable("reduces over the copies")
        if not here.fixed:
            if here.counter is None:
                return one_of(here, index)
            raise Split(here.counter, here.low + 1 - here.offset)
        entry = cast(tracer.graph, source.at(index), kind)
        if here.low == 0:
            return entry
        before = value.at((*index[:axis], indices.number(here.low - 1), *index[axis + 1 :]))
        return tracer.graph.apply("add", before, entry)

    def one_of(here: Index, index: tuple[Index, ...]) -> Node:
        """The entry at a computed index, chosen among all."""
        graph = tracer.graph
        places = [indices.number(i) for i in range(out.shape[axis])]
        entries = [value.at((*index[:axis], each, *index[axis + 1 :])) for each in places]
        chosen = entries[-1]
        for each, entry in zip(places[-2::-1], entries[-2::-1], strict=True):
            chosen = graph.apply("where", graph.apply("eq", here.node, each.node), entry, chosen)
        return chosen

    value = Value(out.shape, out.dtype, read)
    return value


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "any": _reduction(_chain("or"), lambda out, input: BOOL),
    "all": _reduction(_chain("and"), lambda out, input: BOOL),
    "amax": _reduction(_chain("maximum"), _own),
    "amin": _reduction(_chain("minimum"), _own),
    "cumsum": _running,
    "sum": _reduction(_sum, _own),
    "mean": _reduction(_mean, _own),
    "argmax": _best("gt"),
    "argmin": _best("lt"),
}
