"""Operations of torch that move entries and look them up: name in ATen -> how the result is made for one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lifelong.kernels.compiler.graph import INDEX, Node
from lifelong.kernels.compiler.trace import Untraceable
from lifelong.kernels.transitions.elements import cast, elements, operand
from lifelong.kernels.transitions.tracer import Traced, Tracer
from lifelong.kernels.transitions.values import KINDS, Index, Split, Value


def axis_of(tensor: Any, dim: int) -> int:
    """The axis counted from the front."""
    return dim % max(1, tensor.dim())


def _moved(
    tracer: Tracer, out: Tensor, source: Value, where: Callable[[tuple[Index, ...]], tuple[Index, ...]]
) -> Value:
    return Value(out.shape, out.dtype, lambda index: source.at(where(index)))


def _select(tracer: Tracer, out: Tensor, input: Any, dim: int, place: int) -> Value:
    axis, source = axis_of(input, dim), tracer.value(input)
    at = tracer.indices.number(place % source.shape[axis])
    return _moved(tracer, out, source, lambda index: (*index[:axis], at, *index[axis:]))


def _unbind(tracer: Tracer, out: Any, input: Any, dim: int = 0) -> list[Value]:
    return [_select(tracer, each, input, dim, place) for place, each in enumerate(out)]


def _slice(
    tracer: Tracer,
    out: Tensor,
    input: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    axis, source = axis_of(input, dim), tracer.value(input)
    first = slice(start, end, step).indices(source.shape[axis])[0]

    def where(index: tuple[Index, ...]) -> tuple[Index, ...]:
        at = tracer.indices.plus(tracer.indices.times(index[axis], step), first)
        return (*index[:axis], at, *index[axis + 1 :])

    if out.shape == source.shape:
        return source
    return _moved(tracer, out, source, where)


def part(
    tracer: Tracer, name: str, base: Traced, shape: Sequence[int], *args: Any
) -> Callable[[tuple[Index, ...]], tuple[Index, ...] | None] | None:
    """Where in a slice or selection of `base` an entry of it lies; None for other views, which are not written to."""
    axis = axis_of(base, args[0]) if args and isinstance(args[0], int) else 0
    if name == "select":
        first, size, kept = args[1] % base.shape[axis], 1, False
    elif name == "slice" and len(args) < 4:
        start, end = (*args[1:3], None, None)[:2]
        first, size, kept = slice(start, end).indices(base.shape[axis])[0], shape[axis], True
    else:
        return None

    def place(index: tuple[Index, ...]) -> tuple[Index, ...] | None:
        here, last = index[axis], first + size - 1
        if first <= here.low and here.high <= last:
            inner = here if first == 0 else tracer.indices.plus(here, -first)
            return (*index[:axis], *((inner,) if kept else ()), *index[axis + 1 :])
        if here.high < first or here.low > last:
            return None
        if here.counter is None:
            raise Untraceable("reads by a computed index a tensor of which it wrote a part")
        raise Split(here.counter, (first if here.low < first else last + 1) - here.offset)

    return place


def _unsqueeze(tracer: Tracer, out: Tensor, input: Any, dim: int) -> Value:
    axis = dim % out.dim()
    return _moved(tracer, out, tracer.value(input), lambda index: (*index[:axis], *index[axis + 1 :]))


def _reshape(tracer: Tracer, out: Tensor, input: Any, *_: Any) -> Value:
    source, shape = tracer.value(input), tuple(out.shape)
    return _moved(tracer, out, source, lambda index: tracer.indices.reshaped(index, shape, source.shape))


def _expand(tracer: Tracer, out: Tensor, input: Any, *_: Any, **__: Any) -> Value:
    return elements(tracer, out, lambda a: a, (input,))


def _permute(tracer: Tracer, out: Tensor, input: Any, dims: Sequence[int]) -> Value:
    order = [axis_of(input, dim) for dim in dims]
    return _moved(
        tracer, out, tracer.value(input), lambda index: tuple(index[order.index(a)] for a in range(len(order)))
    )


def _transpose(tracer: Tracer, out: Tensor, input: Any, first: int = 0, second: int = 1) -> Value:
    order = list(range(input.dim()))
    a, b = axis_of(input, first), axis_of(input, second)
    order[a], order[b] = b, a
    return _permute(tracer, out, input, order)


def _flip(tracer: Tracer, out: Tensor, input: Any, dims: Sequence[int]) -> Value:
    axes, source, indices = {axis_of(input, dim) for dim in dims}, tracer.value(input), tracer.indices

    def where(index: tuple[Index, ...]) -> tuple[Index, ...]:
        return tuple(
            indices.plus(indices.times(each, -1), source.shape[a] - 1) if a in axes else each
            for a, each in enumerate(index)
        )

    return _moved(tracer, out, source, where)


def _cat(tracer: Tracer, out: Tensor, tensors: Sequence[Any], dim: int = 0) -> Value:
    """One after the other; a loop over the axis is cut where one ends."""
    axis, indices = dim % out.dim(), tracer.indices
    parts = [each for each in tensors if each.dim() == out.dim()]
    reads = [operand(tracer, each, each.shape, KINDS[out.dtype]) for each in parts]
    ends = [sum(each.shape[axis] for each in parts[: i + 1]) for i in range(len(parts))]

    def read(index: tuple[Index, ...]) -> Node:
        here = index[axis]
        if here.copy:
            raise Untraceable("puts copies one after the other")
        for i, end in enumerate(ends):
            begin = ends[i - 1] if i else 0
            if begin <= here.low and here.high < end:
                return reads[i]((*index[:axis], indices.plus(here, -begin), *index[axis + 1 :]))
            if here.counter is not None and here.low < end <= here.high:
                raise Split(here.counter, end - here.offset)
        return _chosen(index, 0)

    def _chosen(index: tuple[Index, ...], i: int) -> Node:
        begin, size = (ends[i - 1] if i else 0), parts[i].shape[axis]
        inside = _within(tracer, indices.plus(index[axis], -begin).node, size)
        node = reads[i]((*index[:axis], inside, *index[axis + 1 :]))
        if i + 1 == len(parts):
            return node
        before = tracer.graph.apply("lt", index[axis].node, tracer.graph.constant(ends[i], INDEX))
        return tracer.graph.apply("where", before, node, _chosen(index, i + 1))

    return Value(out.shape, out.dtype, read)


def _stack(tracer: Tracer, out: Tensor, tensors: Sequence[Any], dim: int = 0) -> Value:
    axis = dim % out.dim()
    shape = [*out.shape[:axis], 1, *out.shape[axis + 1 :]]
    one = torch.empty(shape, dtype=out.dtype)
    rows = [Traced(_unsqueeze(tracer, one, each, axis)) for each in tensors]
    return _cat(tracer, out, rows, axis)


def _roll(tracer: Tracer, out: Tensor, input: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if len(dims) != 1:
        raise Untraceable("uses torch.roll without one axis")
    axis, size = axis_of(input, dims[0]), input.shape[axis_of(input, dims[0])]
    shift = (shifts[0] if isinstance(shifts, list | tuple) else shifts) % size
    parts = []
    for start, end in ((size - shift, size), (0, size - shift)):
        shape = [*out.shape[:axis], end - start, *out.shape[axis + 1 :]]
        part = torch.empty(shape, dtype=out.dtype)
        parts.append(Traced(_slice(tracer, part, input, axis, start, end)))
    return _cat(tracer, out, [part for part in parts if part.shape[axis]], axis)


def _within(tracer: Tracer, node: Node, size: int) -> Index:
    """An index from a node, kept inside the axis; torch refuses one outside."""
    graph = tracer.graph
    if size == 1:
        return tracer.indices.number(0)
    if node.op == "constant" or (node.op == "input" and node.kind == INDEX):
        return Index(node, 0, size - 1) if node.op == "input" else tracer.indices.number(int(node.value or 0) % size)
    zero, last = graph.constant(0, INDEX), graph.constant(size - 1, INDEX)
    node = graph.apply("where", graph.apply("lt", node, zero), zero, node)
    return Index(graph.apply("where", graph.apply("gt", node, last), last, node), 0, size - 1)


def _gather(tracer: Tracer, out: Tensor, input: Any, dim: int, index: Any, **_: Any) -> Value:
    axis, source, places = axis_of(input, dim), tracer.value(input), tracer.value(index)
    if axis == 0:
        raise Untraceable("gathers along the copies")

    def where(at: tuple[Index, ...]) -> tuple[Index, ...]:
        place = _within(tracer, cast(tracer.graph, places.at(at), INDEX), source.shape[axis])
        return (*at[:axis], place, *at[axis + 1 :])

    return _moved(tracer, out, source, where)


def _index(tracer: Tracer, out: Tensor, input: Any, tensors: Sequence[Any]) -> Value:
    """Indexing by tensors of integers, which must stand side by side."""
    source = tracer.value(input)
    given = [axis for axis, each in enumerate(tensors) if each is not None]
    if any(tensors[axis].dtype == torch.bool for axis in given):
        raise Untraceable("indexes by a mask; choose with torch.where")
    if given != list(range(given[0], given[-1] + 1)):
        raise Untraceable("indexes by tensors that do not stand side by side")
    one = torch.zeros(())  # `torch.broadcast_shapes` would import the compiler of torch
    shape = torch.broadcast_tensors(*[one.expand(tensors[axis].shape) for axis in given])[0].shape
    reads = [operand(tracer, tensors[axis], shape, INDEX) for axis in given]
    first, width = given[0], len(shape)

    def where(at: tuple[Index, ...]) -> tuple[Index, ...]:
        inner = at[first : first + width]
        places = []
        for axis, read in zip(given, reads, strict=True):
            node, size = read(inner), source.shape[axis]
            if node.op != "constant" and not (node.op == "input" and node.kind == INDEX):
                wrapped = tracer.graph.apply("add", node, tracer.graph.constant(size, INDEX))
                below = tracer.graph.apply("lt", node, tracer.graph.constant(0, INDEX))
                node = tracer.graph.apply("where", below, wrapped, node)
            places.append(_within(tracer, node, size))
        return (*at[:first], *places, *at[first + width :])

    return _moved(tracer, out, source, where)


def _index_select(tracer: Tracer, out: Tensor, input: Any, dim: int, index: Any) -> Value:
    tensors: list[Any] = [None] * input.dim()
    tensors[axis_of(input, dim)] = index
    return _index(tracer, out, input, tensors)


def _embedding(tracer: Tracer, out: Tensor, weight: Any, index: Any, *_: Any, **__: Any) -> Value:
    return _index(tracer, out, weight, [index])


def _scatter(tracer: Tracer, out: Tensor, input: Any, dim: int, index: Any, source: Any, **_: Any) -> Value:
    """The input with entries replaced, where the index has one place a row."""
    axis, old, places = axis_of(input, dim), tracer.value(input), tracer.value(index)
    if places.shape[axis] != 1 or axis == 0:
        raise Untraceable("scatters more than one number a row")
    graph, zero = tracer.graph, tracer.indices.number(0)
    new = operand(tracer, source, index.shape, KINDS[out.dtype]) if isinstance(source, Tensor) else None

    def read(at: tuple[Index, ...]) -> Node:
        inner = (*at[:axis], zero, *at[axis + 1 :])
        here = graph.apply("eq", cast(graph, places.at(inner), INDEX), at[axis].node)
        put = graph.constant(source, KINDS[out.dtype]) if new is None else new(inner)
        return graph.apply("where", here, put, old.at(at))

    return Value(out.shape, out.dtype, read)


SHAPES: dict[str, Callable[..., Any]] = {
    "select": _select,
    "unbind": _unbind,
    "slice": _slice,
    "unsqueeze": _unsqueeze,
    "squeeze": _reshape,
    "view": _reshape,
    "_unsafe_view": _reshape,
    "reshape": _reshape,
    "_reshape_alias": _reshape,
    "expand": _expand,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "flip": _flip,
    "cat": _cat,
    "stack": _stack,
    "roll": _roll,
    "gather": _gather,
    "index": _index,
    "index_select": _index_select,
    "embedding": _embedding,
    "scatter": _scatter,
}
