"""Element-wise operations of torch, and what makes tensors: name in ATen -> how the result is made for one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lifelong.kernels.compiler.graph import BOOL, FLOATS, INDEX, REAL, Graph, Node
from lifelong.kernels.compiler.trace import Untraceable
from lifelong.kernels.transitions.tracer import Traced, Tracer
from lifelong.kernels.transitions.values import KINDS, Index, Value

#: functions of torch that no C of ours computes to the last bit; they are asked for by name (see `functions`)
_TRIGONOMETRIC = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh")
CALLED = frozenset(
    (*_TRIGONOMETRIC, "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sigmoid", "erf")
)
_MAKE: dict[str, int | None] = {
    "zeros": 0,
    "ones": 1,
    "empty": 0,
    "new_zeros": 0,
    "new_ones": 1,
    "new_empty": 0,
    "zeros_like": 0,
}
_MAKE |= {"ones_like": 1, "empty_like": 0, "full": None, "full_like": None, "new_full": None, "scalar_tensor": None}
_COMPARISONS = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}


def cast(graph: Graph, node: Node, kind: str) -> Node:
    """The node as a number of another kind."""
    if node.kind == kind:
        return node
    if node.op == "constant":
        assert isinstance(node.value, int | float)
        return graph.constant(bool(node.value) if kind == BOOL else node.value, kind)
    if kind == BOOL:
        return graph.apply("ne", node, graph.constant(0, node.kind))
    return graph.apply(f"to_{kind}", node, kind=kind)


def operand(tracer: Tracer, arg: Any, shape: Sequence[int], kind: str) -> Callable[[tuple[Index, ...]], Node]:
    """Reads an argument, a tensor or a number, where the result has shape `shape`."""
    graph = tracer.graph
    if not isinstance(arg, Tensor):
        return lambda index: graph.constant(arg, kind)
    value, zero = tracer.value(arg), tracer.indices.number(0)
    behind = len(shape) - len(value.shape)
    single = [size == 1 != shape[behind + axis] for axis, size in enumerate(value.shape)]

    def read(index: tuple[Index, ...]) -> Node:
        at = tuple(zero if one else each for one, each in zip(single, index[behind:], strict=True))
        return cast(graph, value.at(at), kind)

    return read


def elements(
    tracer: Tracer, out: Tensor, make: Callable[..., Node], args: Sequence[Any], kind: str | None = None
) -> Value:
    """`make` of the entries of `args`, which are read as numbers of `kind`, the result's if not said."""
    kinds = KINDS[out.dtype] if kind is None else kind
    reads = [operand(tracer, arg, out.shape, kinds) for arg in args]
    return Value(out.shape, out.dtype, lambda index: make(*[read(index) for read in reads]))


def _common(args: Sequence[Any]) -> str:
    """The kind in which torch computes with the arguments."""
    sample = [torch.empty(a.shape, dtype=a.dtype) if isinstance(a, Tensor) else a for a in args]
    dtype = torch.result_type(*sample) if len(sample) == 2 else sample[0].dtype
    if dtype not in KINDS:
        raise Untraceable(f"computes with {dtype}")
    return KINDS[dtype]


def _graphs(op: str) -> Callable[..., Value]:
    """An operation of the graph on numbers of the result's kind."""

    def rule(tracer: Tracer, out: Tensor, *args: Any) -> Value:
        if KINDS.get(out.dtype) == BOOL and op in ("add", "mul"):
            return elements(tracer, out, lambda a, b: tracer.graph.apply("or" if op == "add" else "and", a, b), args)
        return elements(tracer, out, lambda *nodes: _narrowed(tracer.graph, tracer.graph.apply(op, *nodes), out), args)

    return rule


def _narrowed(graph: Graph, node: Node, out: Tensor) -> Node:
    """Arithmetic of small integers is C's of ints, and is cut to their size."""
    kind = KINDS[out.dtype]
    return graph.apply(f"to_{kind}", node, kind=kind) if kind not in (*FLOATS, INDEX, BOOL) else node


def _scaled(sign: int) -> Callable[..., Value]:
    """input + sign * alpha * other; with an alpha rounded once, as torch's kernels are compiled."""

    def rule(tracer: Tracer, out: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Value:
        graph, factor = tracer.graph, sign * alpha

        def make(a: Node, b: Node) -> Node:
            if factor in (1, -1):
                return _narrowed(graph, graph.apply("add" if factor == 1 else "sub", a, b), out)
            if a.kind != REAL:
                product = graph.apply("mul", b, graph.constant(factor, b.kind))
                return _narrowed(graph, graph.apply("add", a, product), out)
            return graph.apply("fma", graph.constant(factor), b, a, kind=a.kind)

        if KINDS[out.dtype] == BOOL:
            return elements(tracer, out, lambda a, b: graph.apply("or", a, b), (input, other))
        return elements(tracer, out, make, (input, other))

    return rule


def _reversed(tracer: Tracer, out: Tensor, input: Any, other: Any, alpha: float = 1) -> Value:
    return _scaled(-1)(tracer, out, other, input, alpha=alpha)


def _comparison(op: str) -> Callable[..., Value]:
    def rule(tracer: Tracer, out: Tensor, *args: Any) -> Value:
        def make(a: Node, b: Node) -> Node:
            if a.kind != BOOL:
                return tracer.graph.apply(op, a, b)
            one, other = (cast(tracer.graph, node, "uint8_t") for node in (a, b))
            return tracer.graph.apply(op, one, other)

        return elements(tracer, out, make, args, _common(args))

    return rule


def _divide(tracer: Tracer, out: Tensor, input: Any, other: Any, *, rounding_mode: str | None = None) -> Value:
    graph = tracer.graph
    if rounding_mode is None:
        return elements(tracer, out, lambda a, b: graph.apply("div", a, b), (input, other))
    if out.dtype.is_floating_point:
        raise Untraceable("rounds the quotient of floats")
    if rounding_mode != "floor":
        raise Untraceable(f"divides with rounding_mode={rounding_mode!r}")
    return elements(tracer, out, lambda a, b: _whole(graph, "idiv", a, b, out), (input, other))


def _whole(graph: Graph, op: str, a: Node, b: Node, out: Tensor) -> Node:
    made = graph.apply(op, cast(graph, a, INDEX), cast(graph, b, INDEX), kind=INDEX)
    return cast(graph, made, KINDS[out.dtype])


def _remainder(tracer: Tracer, out: Tensor, input: Any, other: Any) -> Value:
    """The rest with the sign of the divisor."""
    graph = tracer.graph

    def make(a: Node, b: Node) -> Node:
        if a.kind != REAL:
            return _whole(graph, "imod", a, b, out)
        rest, zero = graph.apply("fmod", a, b), graph.constant(0.0)
        other_sign = graph.apply("ne", graph.apply("lt", rest, zero), graph.apply("lt", b, zero))
        off = graph.apply("and", graph.apply("ne", rest, zero), other_sign)
        return graph.apply("where", off, graph.apply("add", rest, b), rest)

    return elements(tracer, out, make, (input, other))


def _negative(tracer: Tracer, out: Tensor, input: Any) -> Value:
    return elements(tracer, out, lambda a: _narrowed(tracer.graph, tracer.graph.apply("neg", a), out), (input,))


def _absolute(tracer: Tracer, out: Tensor, input: Any) -> Value:
    graph = tracer.graph

    def make(a: Node) -> Node:
        if a.kind == REAL:
            return graph.apply("abs", a)
        below = graph.apply("lt", a, graph.constant(0, a.kind))
        return graph.apply("where", below, _narrowed(graph, graph.apply("neg", a), out), a)

    return elements(tracer, out, make, (input,))


def _extremum(op: str) -> Callable[..., Value]:
    def rule(tracer: Tracer, out: Tensor, input: Any, other: Any) -> Value:
        return elements(tracer, out, lambda a, b: better(tracer.graph, op, a, b), (input, other))

    return rule


def better(graph: Graph, op: str, a: Node, b: Node) -> Node:
    """The `maximum` or `minimum` of two numbers of a kind."""
    if a.kind == REAL:
        return graph.apply(op, a, b)
    if a.kind == BOOL:
        return graph.apply("or" if op == "maximum" else "and", a, b)
    return graph.apply("where", graph.apply("gt" if op == "maximum" else "lt", a, b), a, b)


def _clamp(tracer: Tracer, out: Tensor, input: Any, min: Any = None, max: Any = None) -> Value:
    graph, bounds = tracer.graph, [bound for bound in (min, max) if bound is not None]

    def make(a: Node, *limits: Node) -> Node:
        left = list(limits)
        if min is not None:
            low = left.pop(0)
            a = graph.apply("where", graph.apply("lt", a, low), low, a)
        if max is not None:
            high = left.pop(0)
            a = graph.apply("where", graph.apply("gt", a, high), high, a)
        return a

    return elements(tracer, out, make, (input, *bounds))


def _sign(tracer: Tracer, out: Tensor, input: Any) -> Value:
    graph = tracer.graph

    def make(a: Node) -> Node:
        zero, one = graph.constant(0, a.kind), graph.constant(1, a.kind)
        below = graph.apply("where", graph.apply("lt", a, zero), graph.constant(-1, a.kind), zero)
        return graph.apply("where", graph.apply("gt", a, zero), one, below)

    return elements(tracer, out, make, (input,))


def _power(tracer: Tracer, out: Tensor, input: Any, exponent: Any) -> Value:
    """Squares, cubes, roots and their inverses, as torch makes them; no others."""
    graph = tracer.graph
    if isinstance(exponent, Tensor) or exponent not in (1, 2, 3, -1, -2):
        raise Untraceable(
            f"uses torch.pow with the exponent {exponent if not isinstance(exponent, Tensor) else 'in a tensor'}"
        )

    def make(a: Node) -> Node:
        made = a
        for _ in range(int(abs(exponent)) - 1):
            made = graph.apply("mul", made, a)
        made = _narrowed(graph, made, out)
        return made if exponent > 0 else graph.apply("div", graph.constant(1, a.kind), made)

    return elements(tracer, out, make, (input,))


def _where(tracer: Tracer, out: Tensor, condition: Any, input: Any, other: Any) -> Value:
    test = operand(tracer, condition, out.shape, BOOL)
    reads = [operand(tracer, arg, out.shape, KINDS[out.dtype]) for arg in (input, other)]
    graph = tracer.graph

    def read(index: tuple[Index, ...]) -> Node:
        return graph.apply("where", test(index), *[each(index) for each in reads])

    return Value(out.shape, out.dtype, read)


def _masked_fill(tracer: Tracer, out: Tensor, input: Any, mask: Any, value: Any) -> Value:
    return _where(tracer, out, mask, value, input)


def _logical(op: str) -> Callable[..., Value]:
    def rule(tracer: Tracer, out: Tensor, *args: Any) -> Value:
        if op == "xor":
            return elements(
                tracer, out, lambda a, b: tracer.graph.apply("ne", *[cast(tracer.graph, x, "uint8_t") for x in (a, b)]),
                args, BOOL,
            )  # fmt: skip
        return elements(tracer, out, lambda *nodes: tracer.graph.apply(op, *nodes), args, BOOL)

    return rule


def _bitwise(logical: str, other: str) -> Callable[..., Value]:
    def rule(tracer: Tracer, out: Tensor, *args: Any) -> Value:
        if out.dtype == torch.bool:
            return _logical(logical)(tracer, out, *args)
        return elements(
            tracer, out, lambda *nodes: _narrowed(tracer.graph, tracer.graph.apply(other, *nodes), out), args
        )

    return rule


def _fused(tracer: Tracer, out: Tensor, input: Any, first: Any, second: Any, *, value: float = 1) -> Value:
    """input + value * first * second, rounded once at the end as torch's kernel is."""
    graph = tracer.graph

    def make(a: Node, b: Node, c: Node) -> Node:
        if a.kind != REAL:
            raise Untraceable("uses torch.addcmul of other numbers than float32")
        if value not in (1, -1):
            b = graph.apply("mul", graph.constant(value), b)
        return graph.apply("fma", graph.apply("neg", b) if value == -1 else b, c, a, kind=REAL)

    return elements(tracer, out, make, (input, first, second))


def _over(tracer: Tracer, out: Tensor, input: Any, first: Any, second: Any, *, value: float = 1) -> Value:
    graph = tracer.graph

    def make(a: Node, b: Node, c: Node) -> Node:
        b = b if value == 1 else graph.apply("mul", graph.constant(value, b.kind), b)
        return graph.apply("add", a, graph.apply("div", b, c))

    return elements(tracer, out, make, (input, first, second))


def _lerp(tracer: Tracer, out: Tensor, input: Any, end: Any, weight: Any) -> Value:
    graph = tracer.graph

    def make(a: Node, b: Node, w: Node) -> Node:
        span, one = graph.apply("sub", b, a), graph.constant(1.0)
        near = graph.apply("fma", w, span, a, kind=REAL)
        far = graph.apply("fma", graph.apply("neg", span), graph.apply("sub", one, w), b, kind=REAL)
        small = graph.apply("lt", graph.apply("abs", w), graph.constant(0.5))
        return graph.apply("where", small, near, far)

    if out.dtype != torch.float32:
        raise Untraceable("uses torch.lerp of other numbers than float32")
    return elements(tracer, out, make, (input, end, weight))


def _rounded(op: str) -> Callable[..., Value]:
    def rule(tracer: Tracer, out: Tensor, input: Any) -> Value:
        return elements(tracer, out, lambda a: tracer.graph.apply(op, a) if a.kind == REAL else a, (input,))

    return rule


def called(tracer: Tracer, name: str, out: Tensor, args: Sequence[Any]) -> Value:
    """A function that torch, or the library that it calls, computes."""
    if out.dtype != torch.float32:
        raise Untraceable(f"uses torch.{name} of {out.dtype}")
    graph = tracer.graph
    return elements(tracer, out, lambda a: graph.apply("call", a, kind=REAL, value=name), args)


def _converted(tracer: Tracer, out: Tensor, input: Any, **_: Any) -> Value:
    return elements(tracer, out, lambda a: a, (input,))


def like(tracer: Tracer, source: Any, target: Traced) -> Value:
    """The source in the shape and type of the target."""
    return elements(tracer, target, lambda a: a, (source,))


def full(tracer: Tracer, shape: Sequence[int], dtype: torch.dtype, number: Any) -> Value:
    """The same number everywhere."""
    kind = KINDS.get(dtype)
    if kind is None:
        raise Untraceable(f"computes with {dtype}")
    return Value(shape, dtype, lambda index: tracer.graph.constant(number, kind))


def _made(name: str) -> Callable[..., Value]:
    number = _MAKE[name]

    def rule(tracer: Tracer, out: Tensor, *args: Any, **_: Any) -> Value:
        value = number
        if value is None:
            value = args[0] if name == "scalar_tensor" else args[-1]
            if isinstance(value, Tensor):
                raise Untraceable(f"uses torch.{name} with a tensor")
        return full(tracer, out.shape, out.dtype, value)

    return rule


def _arange(tracer: Tracer, out: Tensor, *args: Any, **_: Any) -> Value:
    numbers = [arg for arg in args if isinstance(arg, int | float)]
    start, step = (numbers[0] if len(numbers) > 1 else 0), (numbers[2] if len(numbers) > 2 else 1)
    graph = tracer.graph
    if not isinstance(start, int) or not isinstance(step, int):
        raise Untraceable("uses torch.arange of numbers that are not whole")

    def read(index: tuple[Index, ...]) -> Node:
        place = tracer.indices.plus(tracer.indices.times(index[0], step), start)
        return cast(graph, place.node, KINDS[out.dtype])

    return Value(out.shape, out.dtype, read)


#: rules: (tracer, a result like torch's, arguments) -> the result
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **{name: _made(name) for name in _MAKE},
    **{name: _comparison(op) for name, op in _COMPARISONS.items()},
    "add": _scaled(1),
    "sub": _scaled(-1),
    "rsub": _reversed,
    "mul": _graphs("mul"),
    "div": _divide,
    "true_divide": _divide,
    "floor_divide": lambda tracer, out, a, b: _divide(tracer, out, a, b, rounding_mode="floor"),
    "remainder": _remainder,
    "neg": _negative,
    "abs": _absolute,
    "maximum": _extremum("maximum"),
    "minimum": _extremum("minimum"),
    "clamp": _clamp,
    "clamp_min": lambda tracer, out, a, low: _clamp(tracer, out, a, low),
    "clamp_max": lambda tracer, out, a, high: _clamp(tracer, out, a, None, high),
    "relu": lambda tracer, out, a: _clamp(tracer, out, a, 0),
    "sign": _sign,
    "pow": _power,
    "square": lambda tracer, out, a: _power(tracer, out, a, 2),
    "reciprocal": lambda tracer, out, a: _power(tracer, out, a, -1),
    "where": _where,
    "masked_fill": _masked_fill,
    "logical_and": _logical("and"),
    "logical_or": _logical("or"),
    "logical_not": _logical("not"),
    "logical_xor": _logical("xor"),
    "bitwise_and": _bitwise("and", "bitand"),
    "bitwise_or": _bitwise("or", "bitor"),
    "bitwise_xor": _bitwise("xor", "bitxor"),
    "bitwise_not": _bitwise("not", "bitnot"),
    "bitwise_left_shift": _graphs("shl"),
    "bitwise_right_shift": _graphs("shr"),
    "__lshift__": _graphs("shl"),
    "__rshift__": _graphs("shr"),
    "addcmul": _fused,
    "addcdiv": _over,
    "lerp": _lerp,
    "round": _rounded("round"),
    "floor": _rounded("floor"),
    "ceil": _rounded("ceil"),
    "trunc": _rounded("trunc"),
    "_to_copy": _converted,
    "clone": _converted,
    "detach": _converted,
    "alias": _converted,
    "contiguous": _converted,
    "arange": _arange,
}
